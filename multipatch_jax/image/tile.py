"""Cut an image into its tiles on the device, under jit, and normalise them for the vision tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, UInt8

from multipatch_jax.arguments import check_image
from multipatch_jax.config import TilingConfig
from multipatch_jax.image.pieces import join_pieces, on_device
from multipatch_jax.image.plan import plan_tiles
from multipatch_jax.image.prepare import prepare_image
from multipatch_jax.image.resize import FORMS, default_resize_form, resize
from multipatch_jax.image.steps import TilingSteps, tiling_steps


def tile_padded(
    padded: UInt8[Array | np.ndarray, "H W 3"] | tuple[UInt8[Array | np.ndarray, " piece"], ...],
    steps: TilingSteps,
    *,
    num_tiles: int,
    tiling: TilingConfig = TilingConfig(),
    form: str = "gather",
) -> UInt8[Array, "N M M 3"]:
    """Cut the tiles of an image that is padded to its bucket, or as large as it is. Traceable.

    One compiled program serves all images of a bucket for a given `num_tiles`.

    Args:
      padded: the image in the upper left corner of its bucket, or its pieces (`image/pieces.py`). Pixels beyond the
        image have no influence.
      steps: of this image: from `padded_steps` for its bucket, or from `tiling_steps` for its own size.
      num_tiles: number of tiles to return, at least the image's own number. Tiles after those are undefined.
      tiling: the config that `steps` were made with.
      form: of the resize, "gather", "banded" or "batched"; all give the same bytes. See `image/resize.py`.
    """
    tile = tiling.tile_size
    x = join_pieces(padded, steps.image_size[1]) if isinstance(padded, tuple) else jnp.asarray(padded)
    one_resize = functools.partial(resize, filter=tiling.filter, form=form)
    for step in (steps.to_longest_edge, steps.to_multiples):
        x = x if step is None else one_resize(x, step)
    whole = None if steps.to_one_tile is None else one_resize(x, steps.to_one_tile)
    if whole is not None and not tiling.do_image_splitting:
        x, whole = whole, None
    tiles = []
    for i in range(num_tiles):
        corner = (i // steps.cols * tile, i % steps.cols * tile, 0)
        part = lax.dynamic_slice(x, [jnp.asarray(start, jnp.int32) for start in corner], (tile, tile, 3))
        tiles.append(part if whole is None else jnp.where(i < steps.grid_tiles, part, whole))
    return jnp.stack(tiles)


@functools.partial(jax.jit, static_argnames=("num_tiles", "tiling", "form"))
def _tile_padded(padded, steps, *, num_tiles, tiling, form):
    return tile_padded(padded, steps.unpack(), num_tiles=num_tiles, tiling=tiling, form=form)


@functools.partial(jax.jit, static_argnames=("tiling", "form"))
def _tile_exact(image, *, tiling, form):
    plan = plan_tiles(image.shape[0], image.shape[1], tiling)
    steps = tiling_steps(plan, tiling)  # NumPy arrays, which become constants of the program
    form = "banded" if form == "batched" else form  # no trips are data here, and loops need less memory under vmap
    return tile_padded(image, steps, num_tiles=plan.num_tiles, tiling=tiling, form=form)


def tile_image(
    image: UInt8[Array | np.ndarray, "H W 3"],
    tiling: TilingConfig = TilingConfig(),
    *,
    implementation: str | None = None,
) -> UInt8[Array, "N M M 3"]:
    """Cut an image into its tiles on the device.

    Args:
      image: RGB pixels.

        * A NumPy array is put into a size bucket; one compiled program serves all images of a bucket and number of
          tiles. An image that fits no bucket is tiled on the host, with the same bytes.
        * A `jax.Array`, traced or not, gets a program of its exact shape, so this function works inside your own `jit`
          and `vmap`.
      tiling: the model's `config.tiling`.
      implementation: form of the resize, "gather", "banded" or "batched"; all give the same bytes. None chooses the
        fastest one for the default backend.

    Returns:
      The tiles, row by row, and the global tile last if the image has one.

    Raises:
      ValueError: `image` is not a uint8 array of shape (H, W, 3), or has no pixels; or `implementation` is unknown.
    """
    check_image(image, (jax.Array, np.ndarray), "an array")
    if implementation not in (None, *FORMS):
        raise ValueError(f"implementation must be one of {', '.join(FORMS)} or None, got {implementation!r}.")
    form = implementation or default_resize_form()
    if isinstance(image, jax.Array):
        return _tile_exact(image, tiling=tiling, form=form)
    plan, pixels, steps, tiles = prepare_image(image, tiling, form=form)
    if tiles is not None:
        return jnp.asarray(tiles)
    with on_device(pixels) as arrays:
        return _tile_padded(arrays, steps, num_tiles=plan.num_tiles, tiling=tiling, form=form)


def normalize(tiles: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """Map bytes to the model's range [-1, 1]: (x - 127.5) / 127.5, the reference's rescaling and normalisation in one.

    XLA replaces a division by a constant with a product by its rounded reciprocal, which is 1 ulp off for half of the
    256 bytes. Here the reciprocal is split into two parts, and the product with the first part is exact. So all 256
    results equal those of the division.
    """
    x = tiles.astype(jnp.float32) - 127.5
    return x * (257 / 2**15) + x * (2 / 255 - 257 / 2**15)
