"""An image to its tiles: on the device under jit, or on the host with Pillow. The same bytes either way."""

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32, UInt8
from PIL import Image

from multipatch_jax.config import TilingConfig
from multipatch_jax.resample import (
    SUPPORT,
    Resize,
    axis_filter,
    default_implementation,
    pad_filter,
    resize,
    resize_host,
    vertical_first,
)
from multipatch_jax.tiling import TilePlan, plan_tiles

BUCKETS = (1024, 2048, 4096)  # pixels a side of the squares that images are padded to
MAX_GRID = 4  # tiles a side of the largest grid that goes through a bucket's program
_MAX_THREADS = 4  # of one `tile_image_host`; data-loading workers run several


class ImageFilters(NamedTuple):
    """All that a bucket's program needs to know of one image: weights, sizes and the grid, as data."""

    to_longest_edge: Resize | None
    to_multiples: Resize | None
    to_one_tile: Resize | None
    cols: Int32[Array | np.ndarray, ""]
    grid_tiles: Int32[Array | np.ndarray, ""]  # tiles without the global one


def _check_image(image: Any, kinds: type | tuple[type, ...], what: str) -> None:
    shape, dtype = tuple(getattr(image, "shape", ())), getattr(image, "dtype", None)
    if isinstance(image, kinds) and dtype == np.uint8 and len(shape) == 3 and shape[2] == 3:
        return
    hint = " Channels come last here: np.moveaxis(x, 0, -1)." if len(shape) == 3 and shape[0] == 3 else ""
    found = f"{dtype} of shape {shape}" if shape else type(image).__name__
    raise ValueError(f"Expected {what}, uint8 of shape (H, W, 3), as load_image makes it, got {found}.{hint}")


def _sizes(plan: TilePlan, tiling: TilingConfig) -> list[tuple[tuple[int, int], tuple[int, int]] | None]:
    """(in, out) sizes of the three resizes; None for one that the configuration does without."""
    tile = (tiling.tile_size, tiling.tile_size)
    split = tiling.do_image_splitting
    return [
        ((plan.height, plan.width), plan.resized) if tiling.do_resize else None,
        (plan.resized, plan.stretched) if split else None,
        (plan.stretched if split else plan.resized, tile) if tiling.global_tile or not split else None,
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Buckets: a few static shapes, so that a few compiled programs serve images of every size.


def bucket_of(height: int, width: int) -> tuple[int, int]:
    """The (height, width) that an image is padded to.

    Raises:
      ValueError: the image is too large for every bucket; `fits_device` says so beforehand.
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


def fits_device(plan: TilePlan, tiling: TilingConfig = TilingConfig()) -> bool:
    """Whether the image fits a bucket's program: at most 4096 a side, 4 x 4 tiles, and the program's number of taps.

    For what does not fit, `tile_image_host` gives the same bytes.
    """
    if max(plan.height, plan.width) > BUCKETS[-1]:
        return False
    static = _static_sides(tiling, bucket_of(plan.height, plan.width))
    for step, (sizes, sides) in enumerate(zip(_sizes(plan, tiling), static, strict=True)):
        if sizes is None:
            continue
        filters = [axis_filter(*size, tiling.filter, tiling.resampler) for size in zip(*sizes, strict=True)]
        taps = max(filter.weights.shape[1] for filter in filters)
        if max(sizes[0]) > sides[0] or max(sizes[1]) > sides[1] or taps > _static_taps(sides, tiling.filter):
            return False
        both_passes = sizes[0][1] != sizes[1][1]
        if both_passes and vertical_first(*sizes, tiling.resampler) and not _order_varies(step, tiling):
            return False
    return True


def image_filters(
    plan: TilePlan, tiling: TilingConfig = TilingConfig(), bucket: tuple[int, int] | None = None
) -> ImageFilters:
    """What `tile_padded` needs to know of an image, as NumPy arrays.

    Args:
      plan: of the image, from `plan_tiles`.
      tiling: the same configuration.
      bucket: from `bucket_of`: every array gets the bucket's static shape. None keeps the image's own shapes.
    """
    static = _static_sides(tiling, bucket) if bucket else (None, None, None)
    resizes = []
    for step, (sizes, sides) in enumerate(zip(_sizes(plan, tiling), static, strict=True)):
        if sizes is None:
            resizes.append(None)
            continue
        filters = [axis_filter(*size, tiling.filter, tiling.resampler) for size in zip(*sizes, strict=True)]
        if sides:
            filters = [pad_filter(filter, sides[1], _static_taps(sides, tiling.filter)) for filter in filters]
        in_size, out_size = np.array(sizes, np.int32)
        order = np.array(vertical_first(*sizes, tiling.resampler))
        order = order if _order_varies(step, tiling) or not bucket else None
        resizes.append(Resize(filters[0], filters[1], in_size, out_size, order))
    cols, grid_tiles = np.array(max(plan.cols, 1), np.int32), np.array(max(plan.rows * plan.cols, 1), np.int32)
    return ImageFilters(resizes[0], resizes[1], resizes[2], cols, grid_tiles)


def pad_to_bucket(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "Hb Wb 3"]:
    """The image in the upper left corner of its bucket."""
    shape = (*bucket_of(*image.shape[:2]), 3)
    memory = np.zeros(math.prod(shape) + 63, np.uint8)
    start = -memory.ctypes.data % 64  # on a CPU, JAX uses memory at multiples of 64 as it is and copies any other
    padded = memory[start : start + math.prod(shape)].reshape(shape)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def tile_padded(
    padded: UInt8[Array, "H W 3"],
    filters: ImageFilters,
    *,
    num_tiles: int,
    tiling: TilingConfig = TilingConfig(),
    implementation: str = "gather",
) -> UInt8[Array, "N M M 3"]:
    """The tiles of an image in its bucket; traceable. One program serves all images of a bucket and `num_tiles`.

    Args:
      padded: the image in the upper left corner of its bucket; what lies beyond has no influence.
      filters: from `image_filters`, for this image and bucket.
      num_tiles: how many tiles to return, at least the plan's; what follows those is undefined.
      tiling: the same configuration.
      implementation: "gather" or "banded", the same bytes; see `resample`.
    """
    tile, x = tiling.tile_size, padded
    one_resize = functools.partial(resize, filter=tiling.filter, implementation=implementation)
    for step in (filters.to_longest_edge, filters.to_multiples):
        x = x if step is None else one_resize(x, step)
    whole = None if filters.to_one_tile is None else one_resize(x, filters.to_one_tile)
    if whole is not None and not tiling.do_image_splitting:
        x, whole = whole, None
    tiles = []
    for i in range(num_tiles):
        corner = (i // filters.cols * tile, i % filters.cols * tile, 0)
        part = lax.dynamic_slice(x, corner, (tile, tile, 3))
        tiles.append(part if whole is None else jnp.where(i < filters.grid_tiles, part, whole))
    return jnp.stack(tiles)


@functools.partial(jax.jit, static_argnames=("num_tiles", "tiling", "implementation"))
def _tile_padded(padded, filters, *, num_tiles, tiling, implementation):
    return tile_padded(padded, filters, num_tiles=num_tiles, tiling=tiling, implementation=implementation)


@functools.partial(jax.jit, static_argnames=("tiling", "implementation"))
def _tile_exact(image, *, tiling, implementation):
    plan = plan_tiles(image.shape[0], image.shape[1], tiling)
    filters = image_filters(plan, tiling)  # constants of the program
    return tile_padded(image, filters, num_tiles=plan.num_tiles, tiling=tiling, implementation=implementation)


def tile_image(
    image: UInt8[Array | np.ndarray, "H W 3"],
    tiling: TilingConfig = TilingConfig(),
    *,
    implementation: str | None = None,
) -> UInt8[Array, "N M M 3"]:
    """The tiles of an image, cut on the device: row-major, and the global tile last where there is one.

    Args:
      image: NumPy arrays go through one of a few programs, compiled once for all sizes. A `jax.Array`, traced or not,
        gets a program of its exact shape: this function works in your own `jit` and `vmap`.
      tiling: the model's `config.tiling`.
      implementation: "gather" or "banded", the same bytes; None is what suits the default backend.

    Raises:
      ValueError: not a uint8 array of shape (H, W, 3).
    """
    _check_image(image, (jax.Array, np.ndarray), "an array")
    static = {"tiling": tiling, "implementation": implementation or default_implementation()}
    if isinstance(image, jax.Array):
        return _tile_exact(image, **static)
    plan = plan_tiles(image.shape[0], image.shape[1], tiling)
    if not fits_device(plan, tiling):
        return jnp.asarray(tile_image_host(image, tiling))
    filters = image_filters(plan, tiling, bucket_of(plan.height, plan.width))
    return _tile_padded(pad_to_bucket(image), filters, num_tiles=plan.num_tiles, **static)


# ---------------------------------------------------------------------------------------------------------------------
# Host.


def _pillow_pass(x: np.ndarray, axis: int, size: int, filter: str, pool: ThreadPoolExecutor) -> np.ndarray:
    """One pass by Pillow, a strip a thread; Pillow lets go of the interpreter while it works."""

    def one_strip(strip):
        shape = (strip.shape[1], size) if axis == 0 else (size, strip.shape[0])
        return np.asarray(Image.fromarray(strip).resize(shape, Image.Resampling[filter.upper()]))

    strips = np.array_split(x, min(_MAX_THREADS, x.shape[1 - axis]), axis=1 - axis)
    return np.concatenate(list(pool.map(one_strip, strips)), axis=1 - axis)


def _resize_host(x: np.ndarray, out_size: tuple[int, int], tiling: TilingConfig, pool: ThreadPoolExecutor):
    if tiling.resampler == "torchvision":
        return resize_host(x, out_size, tiling.filter, tiling.resampler)
    # Each pass is a resize of its own, so that their order is ours and not that of the Pillow at hand.
    for axis in (0, 1) if vertical_first(x.shape[:2], out_size, tiling.resampler) else (1, 0):
        if x.shape[axis] != out_size[axis]:
            x = _pillow_pass(x, axis, out_size[axis], tiling.filter, pool)
    return x


def tile_image_host(
    image: UInt8[np.ndarray, "H W 3"], tiling: TilingConfig = TilingConfig()
) -> UInt8[np.ndarray, "N M M 3"]:
    """The tiles of an image, cut on the host with Pillow; JAX is not called, so that data-loading workers can.

    Args:
      image: RGB pixels.
      tiling: the model's `config.tiling`.

    Returns:
      What `tile_image` returns, byte for byte, for an image of any size.

    Raises:
      ValueError: not a NumPy uint8 array of shape (H, W, 3).
    """
    _check_image(image, np.ndarray, "a NumPy array")
    plan = plan_tiles(image.shape[0], image.shape[1], tiling)
    to_longest_edge, to_multiples, to_one_tile = _sizes(plan, tiling)
    tile, x, whole = tiling.tile_size, image, None
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        for step in (to_longest_edge, to_multiples):
            x = x if step is None else _resize_host(x, step[1], tiling, pool)
        if to_one_tile is not None and (plan.has_global_tile or not tiling.do_image_splitting):
            whole = _resize_host(x, to_one_tile[1], tiling, pool)
    tiles = np.empty((plan.num_tiles, tile, tile, 3), np.uint8)
    if tiling.do_image_splitting:
        rows, cols = max(plan.rows, 1), max(plan.cols, 1)
        parts = x.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2)
        tiles[: rows * cols].reshape(parts.shape)[:] = parts
    if whole is not None:
        tiles[-1] = whole
    return tiles


def normalize(tiles: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """Bytes to the model's range, [-1, 1]: (x - 127.5) / 127.5, which is the reference's rescaling and normalisation.

    XLA makes a product with the rounded reciprocal of a division by a constant, 1 ulp off for half of the bytes. With
    the reciprocal in two parts, the first product being exact, all 256 come out as the division gives them.
    """
    x = tiles.astype(jnp.float32) - 127.5
    return x * (257 / 2**15) + x * (2 / 255 - 257 / 2**15)
