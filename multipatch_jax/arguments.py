"""Check arguments before any device work, with errors that name the argument.

A wrong argument then fails at once, and not after minutes of compiling or in the middle of a traced program.
"""

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_INT = 2**31 - 1  # JAX's integers have 32 bits


def require_positive(name: str, value: Any, unit: str = "") -> int:
    """Return `value` as a plain int, or raise an error that names it.

    Args:
      name: name of the value, for the error message.
      value: what the user passed.
      unit: what the value counts, for the error message: "tiles" gives "a positive number of tiles". Without a unit the
        message says "a positive integer".

    Raises:
      ValueError: `value` is not an integer of at least 1. NumPy integers are integers here; True and False are not.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1:
        return int(value)
    expected = f"a positive number of {unit}" if unit else "a positive integer"
    raise ValueError(f"{name} must be {expected}, got {value!r}.")


def require_positive_or_none(name: str, value: Any, unit: str) -> int | None:
    """Return None as it is; otherwise, do as `require_positive`, with an error that names None too."""
    return None if value is None else require_positive(name, value, f"{unit} or None")


def require_type(name: str, value: Any, kind: type) -> None:
    """Raise a ValueError that names the argument unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {_kind(value)}.")


def require_each(name: str, values: Any, kind: type) -> None:
    """Raise a ValueError that names the argument unless `values` is a sequence of instances of `kind`."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be a list, one {kind.__name__} for each, got {_kind(values)}.")
    for index, value in enumerate(values):
        require_type(f"{name}[{index}]", value, kind)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def require_number(name: str, value: Any, *, above: bool = False) -> None:
    """Raise a ValueError that names the argument unless `value` is a finite number of at least 0.

    Args:
      name: name of the value, for the error message.
      value: what the user passed.
      above: whether 0 itself is refused.
    """
    if not _is_real(value) or not 0 <= value < math.inf or (above and value == 0):
        raise ValueError(f"{name} must be a finite number {'above' if above else 'of at least'} 0, got {value!r}.")


def require_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return `value` as a plain int; raise a ValueError that names it unless it is an integer in the range.

    Args:
      name: name of the value, for the error message.
      value: what the user passed.
      least, most: the smallest and the largest value that are allowed; None sets no limit.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least:
        if most is None or int(value) <= most:
            return int(value)
    limit = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name} must be an integer {limit}, got {_kind(value)}.")


def require_pattern(name: str, value: Any) -> re.Pattern[str]:
    """Return a regex compiled, or raise a ValueError that names the argument."""
    require_type(name, value, str)
    try:
        return re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(f"{name} must be a regex, got {_kind(value)}: {error}.") from None


def require_tree(name: str, value: Any) -> None:
    """Raise a ValueError that names the argument unless `value` is a dict, as params are."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a nested dict of arrays, got {_kind(value)}.")


def require_key(name: str, value: Any) -> None:
    """Raise a ValueError that names the argument unless `value` is one random key of JAX."""
    is_array = isinstance(value, (jax.Array, np.ndarray))
    typed = is_array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ()
    if not typed and not (is_array and value.dtype == np.uint32 and value.shape == (2,)):
        raise ValueError(f"{name} must be a random key, such as jax.random.key(0), got {_kind(value)}.")


def _kind(value: Any) -> str:
    """Describe a value in a few characters: plain ones as they are, others by their type."""
    plain = value is None or isinstance(value, (str, bytes, numbers.Number, list, tuple, dict))
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def require_choices(owner: Any, **choices: tuple) -> None:
    """Raise a ValueError unless each field of a config or of settings that is named has one of the values given."""
    for name, allowed in choices.items():
        value = getattr(owner, name)
        if value not in allowed:
            raise ValueError(f"{type(owner).__name__}.{name} must be one of {allowed}, got {value!r}.")


def is_kind(dtype: Any, *kinds: Any) -> bool:
    """Return whether a dtype is of one of some kinds, such as `np.floating`, in this machine's order of bytes.

    Of an array in the other order, a jitted function may read the bytes in the wrong order, without an error.
    """
    if dtype is None:
        return False
    try:
        is_native = np.dtype(dtype).isnative
    except TypeError:  # of a random key, or of another library
        return False
    return is_native and any(jnp.issubdtype(dtype, kind) for kind in kinds)


def check_array(name: str, array: Any, shape: tuple[str | int, ...], dtype: Any) -> None:
    """Check an array's rank, sizes and dtype.

    Args:
      name: name of the array, for the error message.
      array: what the user passed; only its `shape` and `dtype` are read, so a traced array can be checked too.
      shape: one entry per axis. A number is the exact size. A letter stands for any size of at least 1, and the same
        letter stands for the same size.
      dtype: a NumPy type, or `np.floating` for any floating-point type (bfloat16 included), or `np.integer`.

    Raises:
      ValueError: the array does not fit, or an axis has size 0. The message gives the expected and the actual shape.
    """
    found = tuple(getattr(array, "shape", ()))
    sizes: dict[str, int] = {}
    fits = len(found) == len(shape) and all(
        size > 0 and size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        for wanted, size in zip(shape, found, strict=True)
    )
    found_dtype: Any = getattr(array, "dtype", None)
    if fits and is_kind(found_dtype, dtype):
        return
    hint = ""
    if len(found) >= 3 and found[-3] == 3 and found[-1] != 3:
        hint = " Channels come last here: np.moveaxis(x, -3, -1)."
    kinds = {np.floating: "floating", np.integer: "integers"}
    raise ValueError(
        f"{name} must be {kinds.get(dtype) or np.dtype(dtype).name} of shape "
        f"({', '.join(map(str, shape))}), got {found_dtype} of shape {found}.{hint}"
    )


def check_image(image: Any, kinds: type | tuple[type, ...], what: str) -> None:
    """Check that an image is a uint8 array of shape (H, W, 3) and an instance of `kinds`.

    Args:
      image: what the user passed.
      kinds: the array types that are allowed.
      what: name of these types, for the error message.

    Raises:
      ValueError: the image is something else.
    """
    shape, dtype = tuple(getattr(image, "shape", ())), getattr(image, "dtype", None)
    if isinstance(image, kinds) and dtype == np.uint8 and len(shape) == 3 and shape[2] == 3:
        return
    hint = " Channels come last here: np.moveaxis(x, 0, -1)." if len(shape) == 3 and shape[0] == 3 else ""
    found = f"{dtype} of shape {shape}" if shape else type(image).__name__
    raise ValueError(f"Expected {what}, uint8 of shape (H, W, 3), as load_image makes it, got {found}.{hint}")
