"""Find NaN, infinity, and numbers that a dtype cannot hold, in one pass over the stored bits.

Without its sign bit, the bits of a floating-point number are an integer that grows with the number's size, and those of
infinity and NaN are larger still. Two maxima of integers are several times as fast as `np.isfinite`.
"""

import warnings
from typing import Any

import numpy as np

from multipatch_jax.checkpoint.error import CheckpointError


def greatest(array: np.ndarray) -> Any:
    """Return the size of the number that is farthest from 0: NaN if there is a NaN, and 0 of an empty array.

    Args:
      array: of a 16- or 32-bit floating-point dtype, and contiguous.
    """
    if not array.size:
        return array.dtype.type(0)
    width = array.dtype.itemsize
    unsigned = array.reshape(-1).view(f"u{width}")
    positive, negative = int(unsigned.view(f"i{width}").max()), int(unsigned.max()) & ((1 << (8 * width - 1)) - 1)
    return np.array(max(positive, negative), unsigned.dtype).view(array.dtype)[()]


def check_numbers(where: str, array: np.ndarray, dtype: Any = None) -> None:
    """Warn of NaN and infinity, and refuse finite numbers that become infinite in `dtype`.

    Args:
      where: the tensor's file and name, for the messages.
      dtype: None keeps the array's own.

    Raises:
      CheckpointError: a number does not fit `dtype`.
    """
    most = greatest(array)
    if not np.isfinite(most):
        kinds = [kind for kind, test in (("NaN", np.isnan), ("Inf", np.isinf)) if test(array).any()]
        warnings.warn(f"{where} holds {' and '.join(kinds)}.", stacklevel=3)
        most = greatest(array[np.isfinite(array)])
    with np.errstate(over="ignore"):
        fits = dtype is None or np.isfinite(most.astype(dtype))
    if not fits:
        wider = "bfloat16 or float32" if np.dtype(dtype) == np.float16 else "float32"
        raise CheckpointError(
            f"{where} holds a number of size {float(most):g}, which is infinite in {np.dtype(dtype).name}: pass dtype "
            f"{wider}, or None to keep the file's."
        )
