"""Compares the names and shapes of params with those that a config asks for, and reports all differences at once."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from multipatch_jax.arguments import is_kind, require_tree
from multipatch_jax.config import ModelConfig
from multipatch_jax.params.table import PARTS, param_shapes
from multipatch_jax.params.tree import flatten

MOST_LINES, LONGEST_LINE = 40, 400
MOST_COMPARISONS, LONGEST_NAME = 5_000, 200


def mismatch_report(expected: Mapping[str, tuple], found: Mapping[str, tuple], known: Iterable[str] = ()) -> str:
    """Return all differences of two sets of named shapes, one a line, or "" if there are none.

    | line starts with | meaning |
    |---|---|
    | `-` | missing: a name of `expected` that `found` lacks |
    | `+` | unexpected: a name of `found` that `expected` and `known` lack |
    | `~` | a name in both, with another shape |

    A missing or unexpected name comes with the most similar name of the other side, if there is one; where there are
    many names, only the first lines have it. Only the first 40 lines are returned, and a last one with the number of
    the others.

    Args:
      expected, found: name -> shape.
      known: names that `found` may have although `expected` lacks them.
    """
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys() - set(known))
    other = sorted(name for name in expected.keys() & found.keys() if tuple(expected[name]) != tuple(found[name]))
    number = len(missing) + len(unexpected) + len(other)
    missing, unexpected_shown, other = missing[:MOST_LINES], unexpected[:MOST_LINES], other[:MOST_LINES]
    near_found, near_known = _nearest(missing, unexpected), _nearest(unexpected_shown, expected)
    lines = []
    for name in missing:
        near = f" (found the like-named {near_found[name]})" if name in near_found else ""
        lines.append(f" - {name} {tuple(expected[name])}{near}")
    for name in unexpected_shown:
        near = f" (nearest known: {near_known[name]})" if name in near_known else ""
        lines.append(f" + {name} {tuple(found[name])}{near}")
    for name in other:
        lines.append(f" ~ {name}: expected {tuple(expected[name])}, found {tuple(found[name])}")
    lines = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..." for line in lines[:MOST_LINES]]
    return "\n".join(lines + ([f" ... and {number - MOST_LINES} more"] if number > MOST_LINES else []))


def _nearest(names: list[str], others: Collection[str]) -> dict[str, str]:
    """Return name -> the most similar one of `others`, for the first names and those that have one.

    Comparing two names takes about 0.1 ms, so no more than `MOST_COMPARISONS` are compared, and no long ones.
    """
    candidates = [other for other in others if len(other) <= LONGEST_NAME]
    names = [name for name in names if len(name) <= LONGEST_NAME][: MOST_COMPARISONS // max(len(candidates), 1)]
    near = {name: difflib.get_close_matches(name, candidates, n=1) for name in names}
    return {name: found[0] for name, found in near.items() if found}


def check_params(params: Any, config: ModelConfig, parts: tuple[str, ...] = ("vision", "connector")) -> None:
    """Check that `params` have exactly the names and shapes that `config` asks for in `parts`, and a float dtype each.

    It reads shapes and dtypes only, so it takes tracers too. Parameters of other parts may be there, and so may other
    keys at the top of the tree, such as a head of the user's own; neither is checked.

    Raises:
      ValueError: `params` are not a nested dict, hold LoRA factors, or do not fit (the differences are listed), or one
        of them is not floating; or `config` or `parts` are of another kind.
    """
    require_tree("params", params)
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
    for path in shapes:
        dtype = getattr(flat[path], "dtype", None)
        if not is_kind(dtype, jnp.floating):
            raise ValueError(
                f"Params must be arrays of floating-point numbers in this machine's order of bytes, got {path} of "
                f"{dtype}: convert it, such as by np.asarray(x, np.float32)."
            )
