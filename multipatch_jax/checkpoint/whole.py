"""Check that params can be saved whole: every array of them would be loaded again as it is."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from multipatch_jax.arguments import require_tree, require_type
from multipatch_jax.config import DTYPES, ModelConfig
from multipatch_jax.params import PARTS, check_params, flatten, param_shapes


def parts_of(config: ModelConfig, paths: Iterable[str]) -> tuple[str, ...]:
    """Return the parts (of `mp.params.PARTS`) that have at least one parameter among these paths."""
    paths = set(paths)
    return tuple(part for part in PARTS if param_shapes(config, (part,)).keys() & paths)


def own_subtrees(config: ModelConfig, params: Iterable[str]) -> list[str]:
    """Return the keys at the top of params that are not the model's: those of a user's own heads."""
    return sorted(set(params) - _roots(config, PARTS))


def check_whole(config: ModelConfig, params: Any) -> None:
    """Check that `params` hold at least one part of the model, each of them whole, and nothing that cannot be saved.

    Beside the model's there may be subtrees of the user's own.

    Raises:
      ValueError: `config` is no ModelConfig; `params` are no nested dict with texts for keys, hold LoRA factors, do not
        fit the config, or hold a leaf that is not a floating-point array of a dtype in `mp.config.DTYPES`.
    """
    require_type("config", config, ModelConfig)
    require_tree("params", params)
    _check_keys(params, "params")
    flat = flatten(params)
    parts = parts_of(config, flat)
    # A subtree with the name of a part's, without a single parameter of it, is a part that is not whole.
    broken = [part for part in PARTS if _roots(config, (part,)) & params.keys() - _roots(config, parts)]
    check_params(params, config, (*parts, *broken) or PARTS[:2])
    for path, leaf in flat.items():
        _check_leaf(path, leaf)


def _roots(config: ModelConfig, parts: Iterable[str]) -> set[str]:
    return {path.split("/")[0] for path in param_shapes(config, tuple(parts))}


def _check_keys(tree: Mapping[Any, Any], place: str) -> None:
    if not tree:
        raise ValueError(f"{place} must hold arrays, got an empty dict: leave its key out.")
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(f"The keys of {place} must be texts without a slash, got {key!r:.100}.")
        if isinstance(value, Mapping):
            _check_keys(value, key if place == "params" else f"{place}/{key}")


def _check_leaf(path: str, leaf: Any) -> None:
    if isinstance(leaf, Tracer) or not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        raise ValueError(f"params hold arrays or dicts of them, got {path} of type {type(leaf).__name__}.")
    if leaf.dtype.name not in DTYPES or not leaf.dtype.isnative:
        raise ValueError(f"The dtype of params must be one of {', '.join(DTYPES)}, got {path} of {leaf.dtype}.")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(f"{path} is deleted: a train step takes its state's arrays over, so save those it returned.")
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"{path} lies on devices of several hosts: gather the params on one host to save them.")
