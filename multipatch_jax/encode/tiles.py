"""TILES"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from multipatch_jax.arguments import check_array
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import mesh_of, model_params, on_each_device, resolve_config, tiles_in_flight
from multipatch_jax.image import normalize
from multipatch_jax.nn import MultiPatchVisionProcessor, VisionTransformer
from multipatch_jax.params import Params
from multipatch_jax.presets import SMOLVLM_256M


def pad_to_multiple(arrays: Any, of: int) -> Any:
    """The leading axis filled up with copies of its first entry."""
    padding = -len(jax.tree.leaves(arrays)[0]) % of
    if not padding:
        return arrays
    return jax.tree.map(lambda x: jnp.concatenate([x, x[:1].repeat(padding, axis=0)]), arrays)


def map_tiles(function: Callable[[Any], Any], arrays: Any, batch_size: int) -> Array:
    """`function` over the leading axis of `arrays`, up to `batch_size` at a time by vmap, one batch after another."""
    num_tiles = len(jax.tree.leaves(arrays)[0])
    batches = -(-num_tiles // batch_size)
    batch_size = -(-num_tiles // batches)  # 17 tiles, 8 in flight, are three batches of 6 rather than of 8
    arrays = pad_to_multiple(arrays, batch_size)  # a remainder would be a second copy of the whole program
    mapped = jax.lax.map(function, arrays, batch_size=batch_size if batch_size > 1 else None)
    return mapped[:num_tiles]


@functools.partial(jax.jit, static_argnames=("config",))  # so that programs of several sizes trace the tower once
def _encode_tile(params, tile, *, config):
    module = MultiPatchVisionProcessor(config)
    return module.apply({"params": params}, normalize(tile).astype(config.dtype))


def trace_encode(
    params: Params, tiles: UInt8[Array, "N M M 3"], config: ModelConfig, batch_size: int, mesh: Mesh | None = None
) -> Array:
    """The traced heart of all: normalise -> tower -> pixel unshuffle -> projection, mapped over tiles.

    On a mesh the tiles are shared out first and mapped over by each device: the other way round, every device would be
    sent all of them.
    """

    def encode(params, tiles):
        return map_tiles(functools.partial(_encode_tile, params, config=config), tiles, batch_size)

    shared_out = pad_to_multiple(tiles, mesh.size) if mesh else tiles
    return on_each_device(encode, mesh, False, True)(params, shared_out)[: len(tiles)]


@functools.partial(jax.jit, static_argnames=("config", "batch_size", "mesh"))
def encode_tiles_program(params, tiles, *, config, batch_size, mesh):
    """The program of `encode_tiles`, of arguments that are checked and resolved already."""
    return trace_encode(params, tiles, config, batch_size, mesh)


def encode_tiles(
    params: Params,
    tiles: UInt8[Array, "N M M 3"] | UInt8[np.ndarray, "N M M 3"],
    *,
    config: ModelConfig = SMOLVLM_256M,
    batch_size: int | None = None,
) -> Float[Array, "N T D"]:
    """Visual tokens of tiles, as `tile_image` or `tile_image_host` make them.

    Args:
      params: with "vision_model" and "connector"; laid out on a mesh, its devices share the tiles out.
      tiles: uint8, M = config.tiling.tile_size.
      batch_size: most tiles in flight on a device; None is 1 on a CPU, 8 on a TPU and 17 on a GPU.

    Returns:
      (N, tokens_per_tile, D_text).
    """
    check_tiles(tiles, config)
    config, params = resolve_config(config, params), model_params(params)
    return encode_tiles_program(
        params, tiles, config=config, batch_size=tiles_in_flight(batch_size), mesh=mesh_of(params)
    )


@functools.partial(jax.jit, static_argnames=("config",))
def _vision_features(params, pixel_values, pixel_attention_mask, *, config):
    module = VisionTransformer(config)

    def tower(arrays):
        tile, mask = arrays
        return module.apply({"params": params}, tile.astype(config.dtype), mask)

    return map_tiles(tower, (pixel_values, pixel_attention_mask), 1)


def vision_features(
    params: Params,
    pixel_values: Float[Array, "N M M 3"] | Float[np.ndarray, "N M M 3"],
    *,
    config: ModelConfig = SMOLVLM_256M,
    pixel_attention_mask: Bool[Array, "N M M"] | Bool[np.ndarray, "N M M"] | None = None,
) -> Float[Array, "N P D"]:
    """Features of the vision tower, after `post_layernorm`, before the connector.

    Args:
      params: with "vision_model".
      pixel_values: normalised pixels (about -1 to 1), channels last. Any multiple of the patch size is a tile here.
      pixel_attention_mask: True for real pixels of partly filled tiles; None when all are real. Features of patches
        without a real pixel mean nothing, and no real patch depends on them.

    Returns:
      (N, patches, D_vision), patches row-major.
    """
    check_array("pixel_values", pixel_values, ("N", "M", "M", 3), np.floating)
    if pixel_attention_mask is not None:
        check_array("pixel_attention_mask", pixel_attention_mask, pixel_values.shape[:3], np.bool_)
    config = resolve_config(config, params, ("vision",))
    return _vision_features(params["vision_model"], pixel_values, pixel_attention_mask, config=config)


def check_tiles(tiles: Any, config: ModelConfig) -> None:
    """Raises a ValueError for tiles that are not uint8 (N, M, M, 3) of the config's size."""
    side = config.tiling.tile_size
    check_array("tiles", tiles, ("N", side, side, 3), np.uint8)
