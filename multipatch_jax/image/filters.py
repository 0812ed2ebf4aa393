"""FILTERS"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int32

SHIFT = 22  # weights are integers in units of 2**-22
SUPPORT = {"lanczos": 3, "bicubic": 2, "bilinear": 1}  # how far a filter reaches to each side, in pixels


class AxisWeights(NamedTuple):
    """One pass: output i is the sum over t of `weights[i, t] * x[starts[i] + t]`, in units of 2**-22."""

    starts: Int32[Array | np.ndarray, " out"]
    weights: Int32[Array | np.ndarray, "out taps"]


def _sinc(x: np.ndarray) -> np.ndarray:
    x = x * math.pi
    # The C library's sine, as in the reference: NumPy's own may differ in the last bit on some processors.
    sine = np.fromiter(map(math.sin, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)
    return np.where(x == 0, 1.0, sine / np.where(x == 0, 1.0, x))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:  # Keys, a = -0.5
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0.0)


_FORMULAS = {"lanczos": _lanczos, "bicubic": _bicubic, "bilinear": _bilinear}


@functools.lru_cache(maxsize=256)
def axis_weights(in_size: int, out_size: int, filter: str = "lanczos", resampler: str = "pillow") -> AxisWeights:
    """The weights of one pass from `in_size` to `out_size` pixels, equal to the reference's.

    Args:
      in_size, out_size: pixels. Equal sizes give the identity, since the reference skips such a pass.
      filter: "lanczos", "bicubic" (a = -0.5) or "bilinear".
      resampler: "pillow" and "pillow12" keep 22 bits of a weight; "torchvision" as many as fit an int16.
    """
    if in_size == out_size:
        return AxisWeights(np.arange(out_size, dtype=np.int32), np.full((out_size, 1), 1 << SHIFT, np.int32))
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = SUPPORT[filter] * stretch
    center = (np.arange(out_size) + 0.5) * scale
    low = np.maximum((center - support + 0.5).astype(np.int64), 0)
    high = np.minimum((center + support + 0.5).astype(np.int64), in_size)
    tap = np.arange((high - low).max())
    weights = _FORMULAS[filter]((tap + low[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(tap < (high - low)[:, None], weights, 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds from left to right, as the reference; sum does not
    bits = _int16_bits(weights.max()) if resampler == "torchvision" else SHIFT
    weights *= 1 << bits
    integers = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32) << (SHIFT - bits)
    low = low.astype(np.int32)
    for array in (low, integers):
        array.setflags(write=False)  # shared through the cache
    return AxisWeights(low, integers)


def _int16_bits(largest: float) -> int:
    """torch's precision of a pass: the most bits with which its largest weight is still an int16."""
    bits = 0
    while bits < SHIFT and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return bits


def pad_axis_weights(filter: AxisWeights, out_size: int, taps: int) -> AxisWeights:
    """Zero weights up to a static number of outputs and taps; the added outputs are 0."""
    extra = out_size - len(filter.starts)
    return AxisWeights(
        np.pad(filter.starts, (0, extra), mode="edge"),
        np.pad(filter.weights, ((0, extra), (0, taps - filter.weights.shape[1]))),
    )


def vertical_first(in_size: tuple[int, int], out_size: tuple[int, int], resampler: str) -> bool:
    """Whether the vertical pass comes first: in Pillow 13 where that saves work, never elsewhere."""
    fewer_rows, fewer_cols = in_size[0] - out_size[0], in_size[1] - out_size[1]
    return resampler == "pillow" and fewer_rows > 0 and fewer_rows > 2 * fewer_cols
