"""The jitted programs of single calls. Each takes params, arrays, and a static `Execution`.

| program | compiled once for each |
|---|---|
| `encode_tiles_program` | number of tiles |
| `encode_exact_program` | exact shape of a batch of images |
| `encode_prepared_program` | (size bucket, number of tiles) |
| `vision_features_program` | shape of the pixels, and the layers asked for |

`trace_encode` is inside all but the last. The stream's programs are in `tile_queue.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from multipatch_jax.encode.execution import Execution, on_each_device
from multipatch_jax.encode.jit import Program
from multipatch_jax.image import PreparedImage, normalize, tile_image, tile_padded
from multipatch_jax.nn import MultiPatchVisionProcessor, VisionTransformer
from multipatch_jax.params import Params


def _pad_to_multiple(arrays: Any, of: int) -> Any:
    """Extend the leading axis of every array to a multiple of `of`, with copies of its first entry."""
    padding = -len(jax.tree.leaves(arrays)[0]) % of
    if not padding:
        return arrays
    return jax.tree.map(lambda x: jnp.concatenate([x, x[:1].repeat(padding, axis=0)]), arrays)


def _map_tiles(function: Callable[[Any], Any], arrays: Any, batch_size: int) -> Any:
    """Apply `function` to every entry of the leading axis of `arrays`, and stack the results.

    The entries are processed in batches of one size, at most `batch_size`: a `vmap` within a batch, and a scan over the
    batches.
    """
    num_tiles = len(jax.tree.leaves(arrays)[0])
    batches = -(-num_tiles // batch_size)
    batch_size = -(-num_tiles // batches)  # 17 tiles with batch_size 8 are 3 batches of 6, not of 8: less padding
    arrays = _pad_to_multiple(arrays, batch_size)  # `lax.map` compiles a remainder as a second copy of the program
    mapped = jax.lax.map(function, arrays, batch_size=batch_size if batch_size > 1 else None)
    return jax.tree.map(lambda x: x[:num_tiles], mapped)


@functools.partial(jax.jit, static_argnames=("config", "compute"))  # so that the programs of all sizes share one trace
def _encode_tile(params, tile, *, config, compute):
    module = MultiPatchVisionProcessor(config, compute)
    return module.apply({"params": params}, normalize(tile).astype(compute.dtype))


def trace_encode(params: Params, tiles: UInt8[Array, "N M M 3"], execution: Execution) -> Array:
    """Encode tiles inside a trace: normalise, vision tower, pixel unshuffle, projection.

    Every encoding program calls this function. On a mesh, the tiles are split over the devices first, and then each
    device maps over its own. In the other order, XLA would send all tiles to every device.

    Args:
      params: with "vision_model" and "connector".
      tiles: any number of them.
      execution: from `prepare_execution`.

    Returns:
      (N, T, D) in the dtype of the computation.
    """
    one_tile = functools.partial(_encode_tile, config=execution.config, compute=execution.compute)

    def encode(params, tiles):
        return _map_tiles(functools.partial(one_tile, params), tiles, execution.batch_size)

    mesh = execution.mesh
    shared_out = _pad_to_multiple(tiles, mesh.size) if mesh else tiles
    return on_each_device(encode, mesh, False, True)(params, shared_out)[: len(tiles)]


def _encode_tiles(params, tiles, *, execution):
    """Encode (N, M, M, 3) tiles as (N, T, D) tokens."""
    return trace_encode(params, tiles, execution)


def _encode_exact(params, images, *, execution):
    """Encode (B, H, W, 3) pixels as (B, N * T, D) tokens."""
    tiling, form = execution.config.tiling, execution.resize_form
    tiles = jax.vmap(functools.partial(tile_image, tiling=tiling, implementation=form))(images)
    tokens = trace_encode(params, tiles.reshape(-1, *tiles.shape[2:]), execution)
    return tokens.reshape(len(images), -1, tokens.shape[-1])


def _encode_prepared(params, pixels, steps, *, num_tiles, execution):
    """Encode one image in its bucket as (N, T, D) tokens; its size and filter weights are data (`PackedSteps`)."""
    tiling, form = execution.config.tiling, execution.resize_form
    tiles = tile_padded(pixels, steps.unpack(), num_tiles=num_tiles, tiling=tiling, form=form)
    return trace_encode(params, tiles, execution)


def _vision_features(params, pixel_values, pixel_attention_mask, *, layers, execution):
    """Compute the features of tiles, one after another, and a tuple of the inner features that `layers` names."""
    module = VisionTransformer(execution.config.vision, execution.compute)

    def tower(arrays):
        tile, mask = arrays
        return module.apply({"params": params["vision_model"]}, tile.astype(execution.compute.dtype), mask, layers)

    return _map_tiles(tower, (pixel_values, pixel_attention_mask), 1)


encode_tiles_program = Program(_encode_tiles)
encode_exact_program = Program(_encode_exact)
encode_prepared_program = Program(_encode_prepared, static=("num_tiles",))
vision_features_program = Program(_vision_features, static=("layers",))


def lower_encode_tiles(params: Params, tiles: Any, execution: Execution) -> jax.stages.Lowered:
    """Lower the program that `encode_tiles` runs, to look at it or compile it; nothing is executed.

    Args:
      params, execution: from `prepare_execution`.
      tiles: (N, M, M, 3), an array or a `jax.ShapeDtypeStruct`. The same holds for params.
    """
    return encode_tiles_program.lower(params, tiles, execution=execution)


def lower_encode_image(params: Params, image: Any, execution: Execution) -> jax.stages.Lowered:
    """Lower the program that `encode_image` runs, to look at it or compile it; nothing is executed.

    Args:
      params, execution: from `prepare_execution`.
      image: a batch (B, H, W, 3), an array or a `jax.ShapeDtypeStruct`, for the program of its exact shape; or what
        `image.prepare_image` returns, for that of its bucket.
    """
    if isinstance(image, PreparedImage):
        num_tiles = image.plan.num_tiles
        return encode_prepared_program.lower(
            params, image.pixels, image.steps, num_tiles=num_tiles, execution=execution
        )
    return encode_exact_program.lower(params, image, execution=execution)
