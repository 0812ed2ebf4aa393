"""CHECK"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from multipatch_jax.config import ModelConfig
from multipatch_jax.params.table import PARTS, param_shapes
from multipatch_jax.params.tree import flatten


def mismatch_report(expected: Mapping[str, tuple], found: Mapping[str, tuple], known: Iterable[str] = ()) -> str:
    """What is missing (-), unexpected (+) and of another shape (~), a line each; empty when all is well.

    Args:
      expected, found: name -> shape. known: names that may be there and that nobody asked for.
    """
    lines = []
    unexpected = sorted(found.keys() - expected.keys() - set(known))
    for name in sorted(expected.keys() - found.keys()):
        near = difflib.get_close_matches(name, unexpected, n=1)
        lines.append(f" - {name} {expected[name]}" + (f" (found the like-named {near[0]})" if near else ""))
    for name in unexpected:
        near = difflib.get_close_matches(name, expected, n=1)
        lines.append(f" + {name} {found[name]}" + (f" (nearest known: {near[0]})" if near else ""))
    for name in sorted(expected.keys() & found.keys()):
        if tuple(expected[name]) != tuple(found[name]):
            lines.append(f" ~ {name}: expected {tuple(expected[name])}, found {tuple(found[name])}")
    shown = lines[:40] + ([f" ... and {len(lines) - 40} more"] if len(lines) > 40 else [])
    return "\n".join(shown)


def check_params(params: Any, config: ModelConfig, parts: tuple[str, ...] = ("vision", "connector")) -> None:
    """Raises a ValueError where `params` are not of `config`'s names and shapes; reads no values, so tracers do."""
    if not isinstance(params, Mapping):
        raise ValueError(f"params must be a nested dict of arrays, got {type(params).__name__}.")
    if "lora" in params:  # or it would be left out without a word
        raise ValueError("These params hold LoRA factors that are not merged yet: call merge_lora(params) first.")
    expected = param_shapes(config, parts)
    roots = {path.split("/")[0] for path in expected}
    flat = flatten({key: value for key, value in params.items() if key in roots})
    others = param_shapes(config, PARTS).keys() - expected.keys()  # of parts that nobody asks about here
    shapes = {path: getattr(value, "shape", None) for path, value in flat.items() if path not in others}
    if shapes != expected:
        report = mismatch_report(expected, {path: shape or () for path, shape in shapes.items()})
        raise ValueError(f"These params are not of this config (- missing, + unexpected, ~ other shape):\n{report}")
