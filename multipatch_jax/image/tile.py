"""Cut an image into its tiles on the device, under jit, and normalise them for the vision tower."""

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
    """Cut the tiles of an image that is padded to its bucket. Traceable.

    One compiled program serves all images of a bucket for a given `num_tiles`.

    Args:
      padded: the image in the upper left corner of its bucket. Pixels beyond the image have no influence.
      filters: result of `tiling_steps` for this image and bucket.
      num_tiles: number of tiles to return, at least the image's own number. Tiles after those are undefined.
      tiling: the config that `filters` was made with.
      implementation: form of the resize, "gather" or "banded"; both give the same bytes. See `image/resize.py`.
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
    filters = tiling_steps(plan, tiling)  # NumPy arrays, which become constants of the program
    return tile_padded(image, filters, num_tiles=plan.num_tiles, tiling=tiling, implementation=implementation)


def tile_image(
    image: UInt8[Array | np.ndarray, "H W 3"],
    tiling: TilingConfig = TilingConfig(),
    *,
    implementation: str | None = None,
) -> UInt8[Array, "N M M 3"]:
    """Cut an image into its tiles on the device.

    Args:
      image: RGB pixels.
        * A NumPy array is padded to a size bucket; one compiled program serves all images of a bucket and number of
          tiles. An image that fits no bucket is tiled on the host, with the same bytes.
        * A `jax.Array`, traced or not, gets a program of its exact shape, so this function works inside your own `jit`
          and `vmap`.
      tiling: the model's `config.tiling`.
      implementation: form of the resize, "gather" or "banded"; both give the same bytes. None chooses the faster one
        for the default backend.

    Returns:
      The tiles, row by row, and the global tile last if the image has one.

    Raises:
      ValueError: `image` is not a uint8 array of shape (H, W, 3), or has no pixels.
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
    """Map bytes to the model's range [-1, 1]: (x - 127.5) / 127.5, the reference's rescaling and normalisation in one.

    XLA replaces a division by a constant with a product by its rounded reciprocal, which is 1 ulp off for half of the
    256 bytes. Here the reciprocal is split into two parts, and the product with the first part is exact. So all 256
    results equal those of the division.
    """
    x = tiles.astype(jnp.float32) - 127.5
    return x * (257 / 2**15) + x * (2 / 255 - 257 / 2**15)
