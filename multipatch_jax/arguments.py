"""Checks of arguments, made before any device work, so that a wrong one costs nothing and the error names it."""

import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np


def require_positive(name: str, value: Any, unit: str = "", *, or_none: bool = False) -> int:
    """The value as a plain int.

    Args:
      name: what the error calls the value.
      unit: what it counts, such as "tiles"; without one the error speaks of a positive integer.
      or_none: whether the error also offers None, which the caller has handled already.

    Raises:
      ValueError: not an integer (NumPy's count, True and False do not) of at least 1.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1:
        return int(value)
    expected = f"a positive number of {unit}" if unit else "a positive integer"
    raise ValueError(f"{name} must be {expected}{' or None' if or_none else ''}, got {value!r}.")


def check_array(name: str, array: Any, shape: tuple[str | int, ...], dtype: Any) -> None:
    """Raises a ValueError unless an argument has this rank, these sizes and this dtype.

    Args:
      shape: a number is a size. A letter is any positive size, the same wherever the letter stands.
      dtype: a NumPy type, or `np.floating` for all floating-point ones.
    """
    found = tuple(getattr(array, "shape", ()))
    sizes: dict[str, int] = {}
    fits = len(found) == len(shape) and all(
        size > 0 and size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        for wanted, size in zip(shape, found, strict=True)
    )
    found_dtype: Any = getattr(array, "dtype", None)
    if fits and jnp.issubdtype(found_dtype, dtype):
        return
    hint = ""
    if len(found) >= 3 and found[-3] == 3 and found[-1] != 3:
        hint = " Channels come last here: np.moveaxis(x, -3, -1)."
    raise ValueError(
        f"{name} must be {np.dtype(dtype).name if dtype is not np.floating else 'floating'} of shape "
        f"({', '.join(map(str, shape))}), got {found_dtype} of shape {found}.{hint}"
    )
