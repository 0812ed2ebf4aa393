"""BUCKET"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int32, UInt8

from multipatch_jax.config import TilingConfig
from multipatch_jax.image.filters import SUPPORT, axis_weights, pad_axis_weights, vertical_first
from multipatch_jax.image.plan import TilePlan, resize_sizes
from multipatch_jax.image.resize import ResizeStep

BUCKETS = (1024, 2048, 4096)  # pixels a side of the squares that images are padded to
MAX_GRID = 4  # tiles a side of the largest grid that goes through a bucket's program


class TilingSteps(NamedTuple):
    """All that a bucket's program needs to know of one image: weights, sizes and the grid, as data."""

    to_longest_edge: ResizeStep | None
    to_multiples: ResizeStep | None
    to_one_tile: ResizeStep | None
    cols: Int32[Array | np.ndarray, ""]
    grid_tiles: Int32[Array | np.ndarray, ""]  # tiles without the global one


def bucket_of(height: int, width: int) -> tuple[int, int]:
    """The (height, width) that an image is padded to.

    Raises:
      ValueError: the image is too large for every bucket; `fits_bucket` says so beforehand.
    """
    for side in BUCKETS:
        if max(height, width) <= side:
            return side, side
    raise ValueError(f"Expected an image of at most {BUCKETS[-1]} pixels a side, got {height} x {width}.")


def _static_sides(tiling: TilingConfig, bucket: tuple[int, int]) -> list[tuple[int, int]]:
    """(in, out) sides of the padded squares of the three resizes in a bucket."""
    tile, grid = tiling.tile_size, MAX_GRID
    resized = max(bucket)
    if tiling.do_resize:
        grid = min(-(-tiling.longest_edge // tile), MAX_GRID)
        resized = grid * tile
    return [
        (max(bucket), resized),
        (resized, grid * tile),
        (grid * tile if tiling.do_image_splitting else resized, tile),
    ]


def _static_taps(sides: tuple[int, int], filter: str) -> int:
    # One more than the scale asks for: an image's own scale may be a little larger, as its sizes are rounded.
    return math.ceil(2 * SUPPORT[filter] * max(sides[0] / sides[1], 1)) + 1


def _order_varies(step: int, tiling: TilingConfig) -> bool:
    # To multiples of the tile, only an odd configuration has two passes, the vertical one first.
    return tiling.resampler == "pillow" and step != 1


def fits_bucket(plan: TilePlan, tiling: TilingConfig = TilingConfig()) -> bool:
    """Whether the image fits a bucket's program: at most 4096 a side, 4 x 4 tiles, and the program's number of taps.

    For what does not fit, `tile_image_host` gives the same bytes.
    """
    if max(plan.height, plan.width) > BUCKETS[-1]:
        return False
    static = _static_sides(tiling, bucket_of(plan.height, plan.width))
    for step, (sizes, sides) in enumerate(zip(resize_sizes(plan, tiling), static, strict=True)):
        if sizes is None:
            continue
        filters = [axis_weights(*size, tiling.filter, tiling.resampler) for size in zip(*sizes, strict=True)]
        taps = max(filter.weights.shape[1] for filter in filters)
        if max(sizes[0]) > sides[0] or max(sizes[1]) > sides[1] or taps > _static_taps(sides, tiling.filter):
            return False
        both_passes = sizes[0][1] != sizes[1][1]
        if both_passes and vertical_first(*sizes, tiling.resampler) and not _order_varies(step, tiling):
            return False
    return True


def tiling_steps(
    plan: TilePlan, tiling: TilingConfig = TilingConfig(), bucket: tuple[int, int] | None = None
) -> TilingSteps:
    """What `tile_padded` needs to know of an image, as NumPy arrays.

    Args:
      plan: of the image, from `plan_tiles`.
      tiling: the same configuration.
      bucket: from `bucket_of`: every array gets the bucket's static shape. None keeps the image's own shapes.
    """
    static = _static_sides(tiling, bucket) if bucket else (None, None, None)
    resizes = []
    for step, (sizes, sides) in enumerate(zip(resize_sizes(plan, tiling), static, strict=True)):
        if sizes is None:
            resizes.append(None)
            continue
        filters = [axis_weights(*size, tiling.filter, tiling.resampler) for size in zip(*sizes, strict=True)]
        if sides:
            filters = [pad_axis_weights(filter, sides[1], _static_taps(sides, tiling.filter)) for filter in filters]
        in_size, out_size = np.array(sizes, np.int32)
        order = np.array(vertical_first(*sizes, tiling.resampler))
        order = order if _order_varies(step, tiling) or not bucket else None
        resizes.append(ResizeStep(filters[0], filters[1], in_size, out_size, order))
    cols, grid_tiles = np.array(max(plan.cols, 1), np.int32), np.array(max(plan.rows * plan.cols, 1), np.int32)
    return TilingSteps(resizes[0], resizes[1], resizes[2], cols, grid_tiles)


def pad_to_bucket(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "Hb Wb 3"]:
    """The image in the upper left corner of its bucket."""
    shape = (*bucket_of(*image.shape[:2]), 3)
    memory = np.zeros(math.prod(shape) + 63, np.uint8)
    start = -memory.ctypes.data % 64  # on a CPU, JAX uses memory at multiples of 64 as it is and copies any other
    padded = memory[start : start + math.prod(shape)].reshape(shape)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
