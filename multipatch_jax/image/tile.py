"""An image to its tiles: on the device under jit, or on the host with Pillow. The same bytes either way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, UInt8

from multipatch_jax.config import TilingConfig
from multipatch_jax.image.bucket import TilingSteps, bucket_of, fits_bucket, pad_to_bucket, tiling_steps
from multipatch_jax.image.host import check_image, tile_image_host
from multipatch_jax.image.plan import plan_tiles
from multipatch_jax.image.resize import default_resize_implementation, resize


def tile_padded(
    padded: UInt8[Array, "H W 3"],
    filters: TilingSteps,
    *,
    num_tiles: int,
    tiling: TilingConfig = TilingConfig(),
    implementation: str = "gather",
) -> UInt8[Array, "N M M 3"]:
    """The tiles of an image in its bucket; traceable. One program serves all images of a bucket and `num_tiles`.

    Args:
      padded: the image in the upper left corner of its bucket; what lies beyond has no influence.
      filters: from `tiling_steps`, for this image and bucket.
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
    filters = tiling_steps(plan, tiling)  # constants of the program
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
    check_image(image, (jax.Array, np.ndarray), "an array")
    static = {"tiling": tiling, "implementation": implementation or default_resize_implementation()}
    if isinstance(image, jax.Array):
        return _tile_exact(image, **static)
    plan = plan_tiles(image.shape[0], image.shape[1], tiling)
    if not fits_bucket(plan, tiling):
        return jnp.asarray(tile_image_host(image, tiling))
    filters = tiling_steps(plan, tiling, bucket_of(plan.height, plan.width))
    return _tile_padded(pad_to_bucket(image), filters, num_tiles=plan.num_tiles, **static)


def normalize(tiles: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """Bytes to the model's range, [-1, 1]: (x - 127.5) / 127.5, which is the reference's rescaling and normalisation.

    XLA makes a product with the rounded reciprocal of a division by a constant, 1 ulp off for half of the bytes. With
    the reciprocal in two parts, the first product being exact, all 256 come out as the division gives them.
    """
    x = tiles.astype(jnp.float32) - 127.5
    return x * (257 / 2**15) + x * (2 / 255 - 257 / 2**15)
