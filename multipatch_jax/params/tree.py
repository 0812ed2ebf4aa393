"""TREE"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

Params = dict[str, Any]


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat = {}
    for key, value in params.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return params


def count_parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    """Number of parameters in arrays of these shapes."""
    return sum(math.prod(shape) for shape in shapes)
