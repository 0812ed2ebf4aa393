"""An image and its plan to tiles: on the device under jit, or on the host with Pillow. The same bytes either way."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, UInt8
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

BUCKETS = (1024, 2048, 4096)  # sides of the padded squares that images are put into, pixels
MAX_GRID = 4  # tiles a side that the padded canvas has room for


class ImageFilters(NamedTuple):
    """All that the device needs to know of one image: weights and sizes, as data."""

    resize: Resize | None  # to the longest edge
    stretch: Resize | None  # to multiples of the tile
    squash: Resize | None  # to one tile
    cols: Array | np.ndarray | int
    num_parts: Array | np.ndarray | int  # tiles without the global one


def bucket_of(height: int, width: int) -> tuple[int, int]:
    """The padded size of an image's bucket.

    Raises:
      ValueError: the image is larger than the largest bucket; see `fits_device`.
    """
    for side in BUCKETS:
        if max(height, width) <= side:
            return side, side
    raise ValueError(f"An image of {height} x {width} pixels is over the largest bucket, {BUCKETS[-1]} a side.")


def _steps(plan: TilePlan, tiling: TilingConfig) -> list[tuple[tuple[int, int], tuple[int, int]] | None]:
    """(in, out) sizes of the three resizes; None where the configuration has no such step."""
    tile = (tiling.tile_size, tiling.tile_size)
    stretched = plan.stretched if tiling.do_image_splitting else plan.resized
    return [
        ((plan.height, plan.width), plan.resized) if tiling.do_resize else None,
        (plan.resized, plan.stretched) if tiling.do_image_splitting else None,
        (stretched, tile) if tiling.global_tile or not tiling.do_image_splitting else None,
    ]


def _static_sizes(tiling: TilingConfig, bucket: tuple[int, int]) -> list[tuple[int, int]]:
    """(in, out) padded sides of the three resizes in a bucket."""
    tile = tiling.tile_size
    canvas = min(-(-tiling.longest_edge // tile), MAX_GRID) * tile
    resized = canvas if tiling.do_resize else max(bucket)
    stretched = canvas if tiling.do_resize else MAX_GRID * tile
    return [
        (max(bucket), resized),
        (resized, stretched),
        (stretched if tiling.do_image_splitting else resized, tile),
    ]


def _static_taps(in_side: int, out_side: int, filter: str) -> int:
    # One more than the scale asks for: sizes are rounded, so that an image's own scale may be a little larger.
    return int(np.ceil(2 * SUPPORT[filter] * max(in_side / out_side, 1))) + 1


def fits_device(plan: TilePlan, tiling: TilingConfig = TilingConfig()) -> bool:
    """Whether an image can go through a bucket's program; where not, `tile_image_host` gives the same bytes."""
    if max(plan.height, plan.width) > BUCKETS[-1]:
        return False
    bucket = bucket_of(plan.height, plan.width)
    for step, (in_side, out_side) in zip(_steps(plan, tiling), _static_sizes(tiling, bucket), strict=True):
        if step is None:
            continue
        if max(step[0]) > in_side or max(step[1]) > out_side:
            return False
        for size, out in zip(*step, strict=True):
            taps = axis_filter(size, out, tiling.filter, tiling.resampler).weights.shape[1]
            if taps > _static_taps(in_side, out_side, tiling.filter):
                return False
    return True


def image_filters(
    plan: TilePlan, tiling: TilingConfig = TilingConfig(), bucket: tuple[int, int] | None = None
) -> ImageFilters:
    """The filters of one image, NumPy arrays.

    Args:
      plan: from `plan_tiles`.
      tiling: the same configuration.
      bucket: from `bucket_of`: pads every array to the bucket's static shape. None keeps exact shapes.
    """
    static = _static_sizes(tiling, bucket) if bucket else [None] * 3
    resizes = []
    for step, sides in zip(_steps(plan, tiling), static, strict=True):
        if step is None:
            resizes.append(None)
            continue
        filters = [axis_filter(a, b, tiling.filter, tiling.resampler) for a, b in zip(*step, strict=True)]
        if sides:
            filters = [pad_filter(f, sides[1], _static_taps(*sides, tiling.filter)) for f in filters]
        in_size, out_size = (np.asarray(size, np.int32) for size in step)
        resizes.append(Resize(*filters, in_size, out_size, np.bool_(vertical_first(*step, tiling.resampler))))
    return ImageFilters(*resizes, np.int32(max(plan.cols, 1)), np.int32(max(plan.rows * plan.cols, 1)))


def tile_padded(
    padded: UInt8[Array, "H W 3"],
    filters: ImageFilters,
    *,
    num_tiles: int,
    tiling: TilingConfig = TilingConfig(),
    implementation: str = "gather",
) -> UInt8[Array, "N M M 3"]:
    """The tiles of an image in its bucket; traceable. One program serves every image of a (bucket, num_tiles).

    Args:
      padded: the image in the upper left corner of its bucket; what is beyond has no influence.
      filters: from `image_filters`, with the same bucket.
      num_tiles: tiles to return, at least the plan's; tiles beyond the plan's are 0.
      tiling: as for `image_filters`.
      implementation: see `resample.resize`.
    """
    tile, x = tiling.tile_size, padded
    one_resize = functools.partial(resize, filter=tiling.filter, implementation=implementation)
    for step in (filters.resize, filters.stretch):
        x = x if step is None else one_resize(x, step)
    if not tiling.do_image_splitting:
        x = one_resize(x, filters.squash)
    whole = None
    if tiling.do_image_splitting and tiling.global_tile and num_tiles > 1:
        whole = one_resize(x, filters.squash)
    tiles = []
    for i in range(num_tiles):
        row, col = i // filters.cols, i % filters.cols
        part = lax.dynamic_slice(x, (row * tile, col * tile, 0), (tile, tile, 3))
        tiles.append(part if whole is None else jnp.where(i < filters.num_parts, part, whole))
    return jnp.stack(tiles)


def tile_image_host(
    image: UInt8[np.ndarray, "H W 3"], tiling: TilingConfig = TilingConfig()
) -> UInt8[np.ndarray, "N M M 3"]:
    """The tiles of an image, made on the host with Pillow."""
    plan = plan_tiles(*image.shape[:2], tiling)
    first, second, third = _steps(plan, tiling)
    tile, x = tiling.tile_size, image
    for step in (first, second):
        if step is not None:
            x = _resize_host(x, step[1], tiling)
    if not tiling.do_image_splitting:
        return _resize_host(x, (tile, tile), tiling)[None]
    rows, cols = max(plan.rows, 1), max(plan.cols, 1)
    tiles = x.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    if plan.has_global_tile:
        tiles = np.concatenate([tiles, _resize_host(x, (tile, tile), tiling)[None]])
    return tiles


def _resize_host(x, size, tiling):
    if tiling.resampler == "torchvision":
        return resize_host(x, size, tiling.filter, tiling.resampler)
    code = Image.Resampling[tiling.filter.upper()]
    first = (size[0], x.shape[1]) if vertical_first(x.shape[:2], size, tiling.resampler) else (x.shape[0], size[1])
    for height, width in (first, size):
        if x.shape[:2] != (height, width):
            x = np.asarray(Image.fromarray(x).resize((width, height), code))
    return x


@functools.partial(jax.jit, static_argnames=("num_tiles", "tiling", "implementation"))
def _tile_bucket(padded, filters, num_tiles, tiling, implementation):
    return tile_padded(padded, filters, num_tiles=num_tiles, tiling=tiling, implementation=implementation)


@functools.partial(jax.jit, static_argnames=("tiling", "implementation"))
def _tile_exact(image, tiling, implementation):
    plan = plan_tiles(*image.shape[:2], tiling)
    filters = image_filters(plan, tiling)
    return tile_padded(image, filters, num_tiles=plan.num_tiles, tiling=tiling, implementation=implementation)


def pad_to_bucket(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "Hb Wb 3"]:
    """The image in the upper left corner of its bucket."""
    padded = np.zeros((*bucket_of(*image.shape[:2]), 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def tile_image(
    image: UInt8[Array | np.ndarray, "H W 3"],
    tiling: TilingConfig = TilingConfig(),
    *,
    implementation: str | None = None,
) -> UInt8[Array, "N M M 3"]:
    """The tiles of an image, made on the device."""
    implementation = implementation or default_implementation()
    if isinstance(image, np.ndarray):
        plan = plan_tiles(*image.shape[:2], tiling)
        if not fits_device(plan, tiling):
            return jnp.asarray(tile_image_host(image, tiling))
        filters = image_filters(plan, tiling, bucket_of(*image.shape[:2]))
        return _tile_bucket(pad_to_bucket(image), filters, plan.num_tiles, tiling, implementation)
    return _tile_exact(image, tiling, implementation)


def normalize(tiles: UInt8[Array, "*batch"]) -> Float32[Array, "*batch"]:
    """Bytes to the model's range, -1 to 1."""
    return (tiles.astype(jnp.float32) - 127.5) / 127.5
