"""Buckets: a few static shapes, so that a few compiled programs serve images of every size.

XLA compiles a program for each shape of its inputs, so every new image size would have to wait for the compiler.
Instead, an image is padded to its bucket, the smallest of three squares that holds it. Everything else that differs
between the images of a bucket is passed as arrays of static shape (`TilingSteps`): sizes, grid and resize weights. An
image that fits no bucket (`fits_bucket`) is tiled on the host.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int32, UInt8

from multipatch_jax.config import TilingConfig
from multipatch_jax.image.filters import SUPPORT, axis_weights, pad_axis_weights, vertical_first
from multipatch_jax.image.plan import TilePlan, resize_sizes
from multipatch_jax.image.resize import ResizeStep

BUCKETS = (1024, 2048, 4096)  # side of each square that images are padded to, in pixels
MAX_GRID = 4  # most tiles along a side of a grid that a bucket's program makes


class TilingSteps(NamedTuple):
    """What `tile_padded` needs to know of one image, as arrays: the three resizes and the grid of tiles.

    Attributes:
      to_longest_edge, to_multiples, to_one_tile: the three resizes; None for one that the config leaves out.
      cols: columns of the grid, at least 1.
      grid_tiles: tiles of the grid (rows * columns), at least 1; the global tile is not counted.
    """

    to_longest_edge: ResizeStep | None
    to_multiples: ResizeStep | None
    to_one_tile: ResizeStep | None
    cols: Int32[Array | np.ndarray, ""]
    grid_tiles: Int32[Array | np.ndarray, ""]


def bucket_of(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of the bucket that an image of `height` x `width` pixels is padded to.

    Raises:
      ValueError: the image is larger than every bucket. Check with `fits_bucket` before.
    """
    for side in BUCKETS:
        if max(height, width) <= side:
            return side, side
    raise ValueError(f"Expected an image of at most {BUCKETS[-1]} pixels a side, got {height} x {width}.")


def _static_sides(tiling: TilingConfig, bucket: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (input side, output side) of each of the three resizes in a bucket's program, in pixels.

    All intermediate images of the program are padded squares of these sides, whatever the size of the image.
    """
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
    # Taps that the bucket's scale needs, plus one: rounded sizes can make an image's own scale a little larger.
    return math.ceil(2 * SUPPORT[filter] * max(sides[0] / sides[1], 1)) + 1


def _order_varies(step: int, tiling: TilingConfig) -> bool:
    # Whether the program decides the order of passes per image. Only Pillow 13 ever goes vertical first. Resize 2 (step
    # 1) never does: it has two passes only if both sides grow.
    return tiling.resampler == "pillow" and step != 1


def fits_bucket(plan: TilePlan, tiling: TilingConfig = TilingConfig()) -> bool:
    """Return whether the program of a bucket can tile an image.

    The image must be at most 4096 pixels a side, its grid at most 4 x 4 tiles, and its resize weights must have no more
    taps than the program. An extreme aspect ratio can need more taps: 4096 x 111 pixels do with tiles of 64 and a
    longest edge of 256. For an image that does not fit, `tile_image_host` gives the same bytes.
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
        # A safeguard: the program has no branch for the order of passes where `_order_varies` says that it is fixed.
        both_passes = sizes[0][1] != sizes[1][1]
        if both_passes and vertical_first(*sizes, tiling.resampler) and not _order_varies(step, tiling):
            return False
    return True


def tiling_steps(
    plan: TilePlan, tiling: TilingConfig = TilingConfig(), bucket: tuple[int, int] | None = None
) -> TilingSteps:
    """Make the arrays that `tile_padded` needs to tile an image.

    Args:
      plan: the image's plan, from `plan_tiles`.
      tiling: the config that the plan was made with.
      bucket: the image's bucket, from `bucket_of`: the arrays are padded to the static shapes of its program. None
        keeps the image's own shapes, for a program of that one size.

    Returns:
      `TilingSteps` of NumPy arrays.
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


def pad_to_bucket(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "side side 3"]:
    """Copy an image into the upper left corner of its bucket; the rest is zeros."""
    shape = (*bucket_of(*image.shape[:2]), 3)
    memory = np.zeros(math.prod(shape) + 63, np.uint8)
    start = -memory.ctypes.data % 64  # on a CPU, JAX copies a NumPy array unless 64 divides its address
    padded = memory[start : start + math.prod(shape)].reshape(shape)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
