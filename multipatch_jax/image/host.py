"""Tile an image on the host, with the same bytes as on the device.

Pillow resizes, in a few threads. NumPy does it for resamplers whose rounding Pillow does not have.
These functions run no JAX computation, so data-loading workers can call them.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from multipatch_jax.arguments import check_image
from multipatch_jax.config import TilingConfig
from multipatch_jax.image.plan import plan_tiles
from multipatch_jax.image.steps import ResizePlan, resize_plans
from multipatch_jax.resamplers import RESAMPLERS, SHIFT

_MAX_THREADS = 4  # of one call of `tile_image_host`; few, because data-loading workers make several calls at once
_ROWS = 8  # output rows that `resize_numpy` computes at a time, which stay in cache


def _pillow_pass(x: np.ndarray, axis: int, size: int, filter: str, pool: ThreadPoolExecutor) -> np.ndarray:
    """Resize along one axis to `size` pixels with Pillow, one strip per thread.

    Threads help because Pillow releases the interpreter's lock while it resizes.
    """

    def one_strip(strip):
        shape = (strip.shape[1], size) if axis == 0 else (size, strip.shape[0])
        return np.asarray(Image.fromarray(strip).resize(shape, Image.Resampling[filter.upper()]))

    strips = np.array_split(x, min(_MAX_THREADS, x.shape[1 - axis]), axis=1 - axis)
    return np.concatenate(list(pool.map(one_strip, strips)), axis=1 - axis)


def _resize(x: np.ndarray, plan: ResizePlan | None, pool: ThreadPoolExecutor) -> np.ndarray:
    """Resize with Pillow if the resampler allows it, and with NumPy otherwise; no plan leaves `x` as it is."""
    if plan is None:
        return x
    if not RESAMPLERS[plan.resampler].uses_pillow:
        return resize_numpy(x, plan)
    # One call of Pillow for each pass: within one call, the order of passes would depend on the installed Pillow.
    vertical_first = RESAMPLERS[plan.resampler].vertical_first(plan.in_size, plan.out_size)
    for axis in (0, 1) if vertical_first else (1, 0):
        if x.shape[axis] != plan.out_size[axis]:
            x = _pillow_pass(x, axis, plan.out_size[axis], plan.filter, pool)
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
    to_longest_edge, to_multiples, to_one_tile = resize_plans(plan, tiling)
    tile, whole = tiling.tile_size, None
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        x = _resize(_resize(image, to_longest_edge, pool), to_multiples, pool)
        if plan.has_global_tile or not tiling.do_image_splitting:
            whole = _resize(x, to_one_tile, pool)
    tiles = np.empty((plan.num_tiles, tile, tile, 3), np.uint8)
    if tiling.do_image_splitting:
        rows, cols = max(plan.rows, 1), max(plan.cols, 1)
        parts = x.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2)
        tiles[: rows * cols].reshape(parts.shape)[:] = parts
    if whole is not None:
        tiles[-1] = whole
    return tiles


def resize_numpy(image: UInt8[np.ndarray, "H W 3"], plan: ResizePlan) -> UInt8[np.ndarray, "H_out W_out 3"]:
    """Resize an image in NumPy, to the byte as the resampler does. It is slow: for resamplers that Pillow is not."""
    for axis in (0, 1) if plan.weights.vertical_first else (1, 0):
        if image.shape[axis] == plan.out_size[axis]:
            continue
        starts, weights = plan.weights.horizontal if axis else plan.weights.vertical
        x = image.swapaxes(0, axis)
        out = np.empty((plan.out_size[axis], *x.shape[1:]), np.uint8)
        for block in (slice(i, i + _ROWS) for i in range(0, len(out), _ROWS)):
            total = np.full(out[block].shape, 1 << (SHIFT - 1), np.int32)
            for tap in range(weights.shape[1]):
                total += x[np.minimum(starts[block] + tap, len(x) - 1)] * weights[block, tap, None, None]
            out[block] = np.clip(total >> SHIFT, 0, 255)
        image = out.swapaxes(0, axis)
    return np.ascontiguousarray(image)
