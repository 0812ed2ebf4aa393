"""The integer weights of a resize: how much each source pixel counts for each output pixel, as in the reference.

A resize is two passes, one along each axis. In a pass, every output pixel is a weighted sum of neighbouring source
pixels. The weights are computed on the host in float64, with the order of operations of the reference (Pillow's
`Resample.c`, torch's `UpSampleKernel.cpp`), and rounded to integers. The device (`image/resize.py`) and, where it does
not call Pillow, the host (`image/host.py`) then only add products of integers, so they give the reference's bytes.

There are two tables. A filter is a formula and its reach. A resampler says how weights are rounded and which pass comes
first; a new one is a row of `RESAMPLERS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int32

SHIFT = 22  # bits after the binary point: weights are integers in units of 2**-22
Size = tuple[int, int]  # (height, width) in pixels


def _sinc(x: np.ndarray) -> np.ndarray:
    x = x * math.pi
    # The sine of the C library, as in the reference. NumPy's own may differ in the last bit on some processors.
    sine = np.fromiter(map(math.sin, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)
    return np.where(x == 0, 1.0, sine / np.where(x == 0, 1.0, x))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:  # Keys' cubic convolution with a = -0.5
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0.0)


@dataclasses.dataclass(frozen=True)
class Filter:
    """A resampling filter.

    Attributes:
      formula: distances from the output pixel's centre -> weights, before they are normalised.
      support: how far it reaches to each side, in pixels of the coarser one of the two grids.
      pillow_code: Pillow's number for it, which `preprocessor_config.json` holds; no two filters share one.
    """

    formula: Callable[[np.ndarray], np.ndarray]
    support: int
    pillow_code: int


FILTERS = {
    "lanczos": Filter(_lanczos, support=3, pillow_code=1),
    "bilinear": Filter(_bilinear, support=1, pillow_code=2),
    "bicubic": Filter(_bicubic, support=2, pillow_code=3),
}


def _all_bits(largest: float) -> int:
    return SHIFT


def _int16_bits(largest: float) -> int:
    """Return torch's bits after the binary point: the most, up to 22, with which the largest weight fits an int16."""
    bits = 0
    while bits < SHIFT and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return bits


def _never(in_size: Size, out_size: Size) -> bool:
    return False


def _where_it_saves_work(in_size: Size, out_size: Size) -> bool:
    fewer_rows, fewer_cols = in_size[0] - out_size[0], in_size[1] - out_size[1]
    return fewer_rows > 0 and fewer_rows > 2 * fewer_cols


@dataclasses.dataclass(frozen=True)
class Resampler:
    """Whose pixels a resize gives, to the byte.

    Attributes:
      weight_bits: the largest weight of a pass -> the bits after the binary point, at most 22, that weights of this
        pass are rounded to.
      vertical_first: (in_size, out_size) -> whether the vertical pass comes before the horizontal one, which changes
        the rounding.
      uses_pillow: whether Pillow's own resize along one axis gives these bytes, so that the host calls it. That takes
        weights of 22 bits and a filter that Pillow has. Otherwise NumPy adds the products, which is slow.
    """

    weight_bits: Callable[[float], int] = _all_bits
    vertical_first: Callable[[Size, Size], bool] = _never
    uses_pillow: bool = False


RESAMPLERS = {
    "pillow": Resampler(vertical_first=_where_it_saves_work, uses_pillow=True),  # Pillow 13
    "pillow12": Resampler(uses_pillow=True),  # every Pillow before 13
    "torchvision": Resampler(weight_bits=_int16_bits),
}


class AxisWeights(NamedTuple):
    """The weights of one pass, in units of 2**-22: output i is the sum over t of `weights[i, t] * x[starts[i] + t]`.

    Attributes:
      starts: the first source pixel that each output reads.
      weights: one row per output. Rows with fewer taps than the longest one end in zeros.
    """

    starts: Int32[Array | np.ndarray, " out"]
    weights: Int32[Array | np.ndarray, "out taps"]


@functools.lru_cache(maxsize=256)
def axis_weights(in_size: int, out_size: int, filter: str = "lanczos", resampler: str = "pillow") -> AxisWeights:
    """Compute the weights of one pass from `in_size` to `out_size` pixels, equal to the reference's.

    Args:
      in_size, out_size: pixels. Equal sizes give the identity, because the reference skips such a pass.
      filter: a name in `FILTERS`.
      resampler: a name in `RESAMPLERS`, which decides how weights are rounded.

    Returns:
      `AxisWeights` of NumPy arrays. Results are cached and shared, so their arrays must not be changed.
    """
    if in_size == out_size:
        return AxisWeights(np.arange(out_size, dtype=np.int32), np.full((out_size, 1), 1 << SHIFT, np.int32))
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = FILTERS[filter].support * stretch
    center = (np.arange(out_size) + 0.5) * scale
    low = np.maximum((center - support + 0.5).astype(np.int64), 0)
    high = np.minimum((center + support + 0.5).astype(np.int64), in_size)
    tap = np.arange((high - low).max())
    weights = FILTERS[filter].formula((tap + low[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(tap < (high - low)[:, None], weights, 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds from left to right, as in the reference; sum does not
    bits = RESAMPLERS[resampler].weight_bits(weights.max())
    weights *= 1 << bits
    integers = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32) << (SHIFT - bits)
    low = low.astype(np.int32)
    for array in (low, integers):
        array.setflags(write=False)  # the cache shares them
    return AxisWeights(low, integers)


class ResizeWeights(NamedTuple):
    """What a resize adds up.

    Attributes:
      vertical, horizontal: weights of the two passes.
      vertical_first: whether the vertical pass comes first.
      order_varies: whether the vertical pass can come first for some sizes.
    """

    vertical: AxisWeights
    horizontal: AxisWeights
    vertical_first: bool
    order_varies: bool


def resize_weights(in_size: Size, out_size: Size, filter: str, resampler: str) -> ResizeWeights:
    """Compute the weights of a resize, as NumPy arrays that must not be changed; see `axis_weights`."""
    vertical, horizontal = (axis_weights(*along, filter, resampler) for along in zip(in_size, out_size, strict=True))
    row = RESAMPLERS[resampler]
    return ResizeWeights(vertical, horizontal, row.vertical_first(in_size, out_size), row.vertical_first is not _never)
