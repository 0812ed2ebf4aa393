"""Encode one image, or a batch of images of one size.

| image | tiles are made | compiled once for each |
|---|---|---|
| `jax.Array`, traced or not; one or a batch | on the device, inside the program | exact shape |
| one file, PIL image or NumPy array | on the device, inside the program | (size bucket, number of tiles) |
| such a source that fits no bucket (`image.bucket_side`) | on the host, by `tile_image_host` | number of tiles |
| a batch of NumPy arrays | on the host, by `tile_image_host` | number of tiles |
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from multipatch_jax.arguments import check_array
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import prepare_execution
from multipatch_jax.encode.programs import encode_exact_program, encode_prepared_program, encode_tiles_program
from multipatch_jax.image import load_image, on_device, prepare_image, tile_image_host
from multipatch_jax.nn import Compute
from multipatch_jax.params import Params
from multipatch_jax.presets import SMOLVLM_256M


def encode_image(
    params: Params,
    image: Any,
    *,
    config: ModelConfig = SMOLVLM_256M,
    compute: Compute = Compute(),
    batch_size: int | None = None,
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
      compute: how to compute.
      batch_size: most tiles in flight on a device; None chooses by backend (`encode.tiles_in_flight`).

    Returns:
      (N * T, D), or (B, N * T, D) for a batch. The tiles are row-major, the global tile last: the order of the
      `<image>` tokens in the prompt.

    Raises:
      ImageError: the image cannot be decoded, or is refused (see `load_image`).
      FileNotFoundError: there is no such file.
      ValueError: the array, `params` or `batch_size` does not fit, or a setting of `compute` cannot be had.
    """
    if isinstance(image, jax.Array):
        is_batch = image.ndim == 4
        check_array("image", image, ("B", "H", "W", 3) if is_batch else ("H", "W", 3), np.uint8)
    else:
        is_batch = isinstance(image, np.ndarray) and image.ndim == 4
        if is_batch and not len(image):
            raise ValueError(f"Expected a batch of at least one image, got an array of shape {image.shape}.")
        image = np.stack([load_image(one) for one in image]) if is_batch else load_image(image)
    params, execution = prepare_execution(params, config, compute, batch_size)
    if isinstance(image, jax.Array):
        tokens = encode_exact_program(params, image if is_batch else image[None], execution=execution)
        return tokens if is_batch else tokens[0]
    if is_batch:
        tiles = np.concatenate([tile_image_host(one, config.tiling) for one in image])
        tokens = encode_tiles_program(params, tiles, execution=execution)
        return tokens.reshape(len(image), -1, tokens.shape[-1])
    plan, pixels, steps, tiles = prepare_image(image, config.tiling, form=execution.resize_form)
    if tiles is None:
        with on_device(pixels) as arrays:
            tokens = encode_prepared_program(params, arrays, steps, num_tiles=plan.num_tiles, execution=execution)
    else:
        tokens = encode_tiles_program(params, tiles, execution=execution)
    return tokens.reshape(-1, tokens.shape[-1])
