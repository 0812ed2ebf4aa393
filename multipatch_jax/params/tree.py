"""The params tree, a nested dict of arrays, and its flat form, a dict from paths ("a/b/kernel") to arrays."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

Params = dict[str, Any]
"""A nested dict of arrays."""


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a flat dict of the leaves of a nested one, by their paths: {"a": {"b": x}} -> {"a/b": x}.

    Args:
      prefix: put in front of every path.
    """
    flat = {}
    for key, value in params.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Return the nested dict of a flat one, {"a/b": x} -> {"a": {"b": x}}: the inverse of `flatten`."""
    params: Params = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return params


def count_parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return how many numbers arrays of these shapes hold, all together."""
    return sum(math.prod(shape) for shape in shapes)
