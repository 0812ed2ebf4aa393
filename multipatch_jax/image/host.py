"""Tile an image on the host, with the same bytes as on the device.

Pillow resizes, in a few threads. NumPy does it for the "torchvision" resampler, whose rounding Pillow does not have.
These functions run no JAX computation, so data-loading workers can call them.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from multipatch_jax.config import TilingConfig
from multipatch_jax.image.filters import SHIFT, axis_weights, vertical_first
from multipatch_jax.image.plan import plan_tiles, resize_sizes

_MAX_THREADS = 4  # of one call of `tile_image_host`; few, because data-loading workers make several calls at once


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


def _pillow_pass(x: np.ndarray, axis: int, size: int, filter: str, pool: ThreadPoolExecutor) -> np.ndarray:
    """Resize along one axis to `size` pixels with Pillow, one strip per thread.

    Threads help because Pillow releases the interpreter's lock while it resizes.
    """

    def one_strip(strip):
        shape = (strip.shape[1], size) if axis == 0 else (size, strip.shape[0])
        return np.asarray(Image.fromarray(strip).resize(shape, Image.Resampling[filter.upper()]))

    strips = np.array_split(x, min(_MAX_THREADS, x.shape[1 - axis]), axis=1 - axis)
    return np.concatenate(list(pool.map(one_strip, strips)), axis=1 - axis)


def _resize_host(x: np.ndarray, out_size: tuple[int, int], tiling: TilingConfig, pool: ThreadPoolExecutor):
    if tiling.resampler == "torchvision":
        return resize_host(x, out_size, tiling.filter, tiling.resampler)
    # One call of Pillow for each pass: within one call, the order of passes would depend on the installed Pillow.
    for axis in (0, 1) if vertical_first(x.shape[:2], out_size, tiling.resampler) else (1, 0):
        if x.shape[axis] != out_size[axis]:
            x = _pillow_pass(x, axis, out_size[axis], tiling.filter, pool)
    return x


def tile_image_host(
    image: UInt8[np.ndarray, "H W 3"], tiling: TilingConfig = TilingConfig()
) -> UInt8[np.ndarray, "N M M 3"]:
    """Cut an image of any size into its tiles on the host.

    It runs no JAX computation, so data-loading workers can call it.

    Args:
      image: RGB pixels, such as `load_image` returns.
      tiling: the model's `config.tiling`.

    Returns:
      The tiles, row by row, and the global tile last if the image has one: the bytes that `tile_image` returns.

    Raises:
      ValueError: `image` is not a NumPy uint8 array of shape (H, W, 3), or has no pixels.
    """
    check_image(image, np.ndarray, "a NumPy array")
    plan = plan_tiles(image.shape[0], image.shape[1], tiling)
    to_longest_edge, to_multiples, to_one_tile = resize_sizes(plan, tiling)
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


_ROWS = 8  # output rows computed at a time, which stay in cache


def resize_host(
    image: UInt8[np.ndarray, "H W 3"], out_size: tuple[int, int], filter: str, resampler: str
) -> UInt8[np.ndarray, "H_out W_out 3"]:
    """Resize an image in NumPy, to the byte as the resampler does.

    It is slow, so `tile_image_host` only calls it for "torchvision", which Pillow cannot reproduce.

    Args:
      image: RGB pixels.
      out_size: (height, width) of the result, in pixels.
      filter: "lanczos", "bicubic" or "bilinear".
      resampler: "pillow", "pillow12" or "torchvision".
    """
    for axis in (0, 1) if vertical_first(image.shape[:2], out_size, resampler) else (1, 0):
        if image.shape[axis] == out_size[axis]:
            continue
        starts, weights = axis_weights(image.shape[axis], out_size[axis], filter, resampler)
        x = image.swapaxes(0, axis)
        out = np.empty((out_size[axis], *x.shape[1:]), np.uint8)
        for block in (slice(i, i + _ROWS) for i in range(0, len(out), _ROWS)):
            total = np.full(out[block].shape, 1 << (SHIFT - 1), np.int32)
            for tap in range(weights.shape[1]):
                total += x[np.minimum(starts[block] + tap, len(x) - 1)] * weights[block, tap, None, None]
            out[block] = np.clip(total >> SHIFT, 0, 255)
        image = out.swapaxes(0, axis)
    return np.ascontiguousarray(image)
