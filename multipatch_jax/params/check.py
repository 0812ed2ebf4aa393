"""Compares the names and shapes of params with those that a config asks for, and reports all differences at once."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from multipatch_jax.config import ModelConfig
from multipatch_jax.params.table import PARTS, param_shapes
from multipatch_jax.params.tree import flatten


def mismatch_report(expected: Mapping[str, tuple], found: Mapping[str, tuple], known: Iterable[str] = ()) -> str:
    """Return all differences of two sets of named shapes, one a line, or "" if there are none.

    | line starts with | meaning |
    |---|---|
    | `-` | missing: a name of `expected` that `found` lacks |
    | `+` | unexpected: a name of `found` that `expected` and `known` lack |
    | `~` | a name in both, with another shape |

    A missing or unexpected name comes with the most similar name of the other side, if there is one. Only the first 40
    lines are returned, and a last one with the number of the others.

    Args:
      expected, found: name -> shape.
      known: names that `found` may have although `expected` lacks them.
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
    """Check that `params` have exactly the names and shapes that `config` asks for in `parts`.

    It reads shapes only, so it takes tracers too. Parameters of other parts may be there, and so may other keys at the
    top of the tree, such as a head of the user's own; neither is checked.

    Raises:
      ValueError: `params` are not a nested dict, hold LoRA factors, or do not fit (every difference is listed).
    """
    if not isinstance(params, Mapping):
        raise ValueError(f"params must be a nested dict of arrays, got {type(params).__name__}.")
    if "lora" in params:  # otherwise the factors would be ignored silently
        raise ValueError("These params hold LoRA factors that are not merged yet: call merge_lora(params) first.")
    expected = param_shapes(config, parts)
    roots = {path.split("/")[0] for path in expected}
    flat = flatten({key: value for key, value in params.items() if key in roots})
    others = param_shapes(config, PARTS).keys() - expected.keys()  # paths of the parts that are not checked
    shapes = {path: getattr(value, "shape", None) for path, value in flat.items() if path not in others}
    if shapes != expected:
        report = mismatch_report(expected, {path: shape or () for path, shape in shapes.items()})
        raise ValueError(f"These params are not of this config (- missing, + unexpected, ~ other shape):\n{report}")
