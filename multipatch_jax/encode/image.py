"""Encode one image, or a batch of images of one size.

| image | tiles are made | compiled once for each |
|---|---|---|
| `jax.Array`, traced or not; one or a batch | on the device, inside the program | exact shape |
| one file, PIL image or NumPy array | on the device, inside the program | (size bucket, number of tiles) |
| such a source that fits no bucket (`image.fits_bucket`) | on the host, by `tile_image_host` | number of tiles |
| a batch of NumPy arrays | on the host, by `tile_image_host` | number of tiles |
"""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from multipatch_jax.arguments import check_array
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import mesh_of, model_params, resolve_config, tiles_in_flight
from multipatch_jax.encode.tiles import encode_tiles_program, trace_encode
from multipatch_jax.image import (
    bucket_of,
    default_resize_implementation,
    fits_bucket,
    load_image,
    pad_to_bucket,
    plan_tiles,
    tile_image,
    tile_image_host,
    tile_padded,
    tiling_steps,
)
from multipatch_jax.params import Params
from multipatch_jax.presets import SMOLVLM_256M


@functools.partial(jax.jit, static_argnames=("config", "batch_size", "mesh", "resize_implementation"))
def _encode_pixels(params, images, *, config, batch_size, mesh, resize_implementation):
    """Encode (B, H, W, 3) pixels as (B, N * T, D) tokens: one program for each exact shape."""
    tile = functools.partial(tile_image, tiling=config.tiling, implementation=resize_implementation)
    tiles = jax.vmap(tile)(images)
    tokens = trace_encode(params, tiles.reshape(-1, *tiles.shape[2:]), config, batch_size, mesh)
    return tokens.reshape(len(images), -1, tokens.shape[-1])


@functools.partial(jax.jit, static_argnames=("num_tiles", "config", "batch_size", "mesh", "resize_implementation"))
def _encode_padded(params, padded, steps, *, num_tiles, config, batch_size, mesh, resize_implementation):
    """Encode one image, padded to its bucket, as (N, T, D) tokens: one program for each (bucket, num_tiles).

    The image's size and filter weights are data (`steps`), not part of the program.
    """
    tiles = tile_padded(padded, steps, num_tiles=num_tiles, tiling=config.tiling, implementation=resize_implementation)
    return trace_encode(params, tiles, config, batch_size, mesh)


def encode_image(
    params: Params, image: Any, *, config: ModelConfig = SMOLVLM_256M, batch_size: int | None = None
) -> Float[Array, "tokens D"] | Float[Array, "B tokens D"]:
    """Encode an image of any size, or a batch of images of one size, as visual tokens.

    Args:
      params: with "vision_model" and "connector". If they are laid out on a mesh, its devices share the tiles.
      image: one of
        * anything that `load_image` takes, except a `jax.Array`;
        * a 4-D NumPy array, a batch of such images: (B, H, W, 3), for example;
        * a `jax.Array`, traced or not: uint8 (H, W, 3) or (B, H, W, 3). It is resampled inside the program, so that
          this function works in your own `jit`, `grad` and `vmap`.
      config: the model's.
      batch_size: most tiles in flight on a device; None chooses by backend (`encode.tiles_in_flight`).

    Returns:
      (N * T, D), or (B, N * T, D) for a batch. The tiles are row-major, the global tile last: the order of the
      `<image>` tokens in the prompt.

    Raises:
      ImageError: the image cannot be decoded, or is refused (see `load_image`).
      FileNotFoundError: there is no such file.
      ValueError: the array, `params` or `batch_size` does not fit.
    """
    if isinstance(image, jax.Array):
        is_batch = image.ndim == 4
        check_array("image", image, ("B", "H", "W", 3) if is_batch else ("H", "W", 3), np.uint8)
    else:
        is_batch = isinstance(image, np.ndarray) and image.ndim == 4
        if is_batch and not len(image):
            raise ValueError(f"Expected a batch of at least one image, got an array of shape {image.shape}.")
        image = np.stack([load_image(one) for one in image]) if is_batch else load_image(image)
    resolved = resolve_config(config, params)
    params = model_params(params)
    static = {"config": resolved, "batch_size": tiles_in_flight(batch_size), "mesh": mesh_of(params)}
    if isinstance(image, jax.Array):
        batch = image if is_batch else image[None]
        tokens = _encode_pixels(params, batch, resize_implementation=default_resize_implementation(), **static)
        return tokens if is_batch else tokens[0]
    if is_batch:
        tiles = np.concatenate([tile_image_host(one, config.tiling) for one in image])
        tokens = encode_tiles_program(params, tiles, **static)
        return tokens.reshape(len(image), -1, tokens.shape[-1])
    plan = plan_tiles(image.shape[0], image.shape[1], config.tiling)
    if fits_bucket(plan, config.tiling):
        steps = tiling_steps(plan, config.tiling, bucket_of(plan.height, plan.width))
        static |= {"num_tiles": plan.num_tiles, "resize_implementation": default_resize_implementation()}
        tokens = _encode_padded(params, pad_to_bucket(image), steps, **static)
    else:
        tokens = encode_tiles_program(params, tile_image_host(image, config.tiling), **static)
    return tokens.reshape(-1, tokens.shape[-1])
