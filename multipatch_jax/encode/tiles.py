"""Encode tiles: the function of one tile, its map over many tiles and devices, and the public calls."""

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
    """Extend the leading axis of every array to a multiple of `of`, with copies of its first entry."""
    padding = -len(jax.tree.leaves(arrays)[0]) % of
    if not padding:
        return arrays
    return jax.tree.map(lambda x: jnp.concatenate([x, x[:1].repeat(padding, axis=0)]), arrays)


def map_tiles(function: Callable[[Any], Any], arrays: Any, batch_size: int) -> Array:
    """Apply `function` to every entry of the leading axis of `arrays`, and stack the results.

    The entries are processed in batches of one size, at most `batch_size`: a `vmap` within a batch, and a scan over the
    batches.
    """
    num_tiles = len(jax.tree.leaves(arrays)[0])
    batches = -(-num_tiles // batch_size)
    batch_size = -(-num_tiles // batches)  # 17 tiles with batch_size 8 are 3 batches of 6, not of 8: less padding
    arrays = pad_to_multiple(arrays, batch_size)  # `lax.map` compiles a remainder as a second copy of the program
    mapped = jax.lax.map(function, arrays, batch_size=batch_size if batch_size > 1 else None)
    return mapped[:num_tiles]


@functools.partial(jax.jit, static_argnames=("config",))  # so that the programs of all sizes share one trace
def _encode_tile(params, tile, *, config):
    module = MultiPatchVisionProcessor(config)
    return module.apply({"params": params}, normalize(tile).astype(config.dtype))


def trace_encode(
    params: Params, tiles: UInt8[Array, "N M M 3"], config: ModelConfig, batch_size: int, mesh: Mesh | None = None
) -> Array:
    """Encode tiles inside a trace: normalise, vision tower, pixel unshuffle, projection.

    Every encoding program calls this function. On a mesh, the tiles are split over the devices first, and then each
    device maps over its own. In the other order, XLA would send all tiles to every device.

    Args:
      params: with "vision_model" and "connector".
      tiles: any number of them.
      config: from `resolve_config`.
      batch_size: most tiles in flight on a device.
      mesh: from `mesh_of`; None for a single device.

    Returns:
      (N, T, D) in `config.dtype`.
    """

    def encode(params, tiles):
        return map_tiles(functools.partial(_encode_tile, params, config=config), tiles, batch_size)

    shared_out = pad_to_multiple(tiles, mesh.size) if mesh else tiles
    return on_each_device(encode, mesh, False, True)(params, shared_out)[: len(tiles)]


@functools.partial(jax.jit, static_argnames=("config", "batch_size", "mesh"))
def encode_tiles_program(params, tiles, *, config, batch_size, mesh):
    """The jitted program of `encode_tiles`, for arguments that are checked and resolved already."""
    return trace_encode(params, tiles, config, batch_size, mesh)


def encode_tiles(
    params: Params,
    tiles: UInt8[Array, "N M M 3"] | UInt8[np.ndarray, "N M M 3"],
    *,
    config: ModelConfig = SMOLVLM_256M,
    batch_size: int | None = None,
) -> Float[Array, "N T D"]:
    """Encode tiles as visual tokens.

    Args:
      params: with "vision_model" and "connector". If they are laid out on a mesh, its devices share the tiles.
      tiles: at least one, as `tile_image` or `tile_image_host` makes them: uint8, M = config.tiling.tile_size.
      config: the model's.
      batch_size: most tiles in flight on a device; None chooses by backend (`encode.tiles_in_flight`).

    Returns:
      (N, T, D), T being config.tiling.tokens_per_tile, in `config.dtype` or, if that is None, the dtype of the params.

    Raises:
      ValueError: `tiles` or `params` do not fit `config`, or `batch_size` is not a positive integer.
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
) -> Float[Array, "N P C"]:
    """Compute the features of the vision tower: after its `post_layernorm`, before the connector.

    The tiles are computed one after another.

    Args:
      params: with "vision_model".
      pixel_values: normalised pixels (about -1 to 1), channels last. M may be any multiple of the patch size, not only
        config.tiling.tile_size.
      config: the model's.
      pixel_attention_mask: True for the real pixels of partly filled tiles; None if all pixels are real. A patch
        without a real pixel has meaningless features, and the other patches do not depend on it.

    Returns:
      (N, P, C), the patches row-major, in `config.dtype` or, if that is None, the dtype of the params.

    Raises:
      ValueError: shapes or dtypes do not fit, or `params` are not of this config.
    """
    check_array("pixel_values", pixel_values, ("N", "M", "M", 3), np.floating)
    if pixel_attention_mask is not None:
        check_array("pixel_attention_mask", pixel_attention_mask, pixel_values.shape[:3], np.bool_)
    config = resolve_config(config, params, ("vision",))
    return _vision_features(params["vision_model"], pixel_values, pixel_attention_mask, config=config)


def check_tiles(tiles: Any, config: ModelConfig) -> None:
    """Raise a ValueError unless `tiles` are uint8 (N, M, M, 3), N at least 1 and M = config.tiling.tile_size."""
    side = config.tiling.tile_size
    check_array("tiles", tiles, ("N", side, side, 3), np.uint8)
