"""Tiles or a whole image -> visual tokens, as pure jitted functions. The mapping over tiles lives here."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, UInt8

from multipatch_jax import weights
from multipatch_jax.attention import resolve_implementation
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import load_image
from multipatch_jax.preprocess import (
    bucket_of,
    fits_device,
    image_filters,
    normalize,
    pad_to_bucket,
    tile_image,
    tile_image_host,
    tile_padded,
)
from multipatch_jax.presets import SMOLVLM_256M
from multipatch_jax.processor import MultiPatchVisionProcessor
from multipatch_jax.resample import default_implementation
from multipatch_jax.tiling import plan_tiles
from multipatch_jax.vision import VisionTransformer

Params = dict[str, Any]


def resolve(config: ModelConfig, params: Params, parts: tuple[str, ...] = ("vision", "connector")) -> ModelConfig:
    """The config with all that is left open decided, after a check that `params` are of this config."""
    weights.check_params(params, config, parts)
    dtype = config.dtype or params["vision_model"]["embeddings"]["patch_embedding"]["kernel"].dtype.name
    return dataclasses.replace(
        config,
        dtype=dtype,
        attention=resolve_implementation(config.attention, dtype),
        precision=config.precision if dtype == "float32" else "default",
    )


def tiles_in_flight(batch_size: int | None, platform: str | None = None) -> int:
    """Tiles per step of the map. More than one on a CPU only grows the working set; a GPU takes all of an image."""
    if batch_size is None:
        return {"cpu": 1, "tpu": 8}.get(platform or jax.default_backend(), 17)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive number of tiles or None, got {batch_size!r}.")
    return batch_size


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that params are laid out on, if it has several devices: tiles are then shared out over all of them.

    Raises:
      ValueError: a mesh with devices of other hosts, which cannot be fed from here.
    """
    sharding = None
    if isinstance(leaf := jax.tree.leaves(params)[0], jax.Array) and not isinstance(leaf, Tracer):
        sharding = leaf.sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return None
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "Every host encodes images of its own, so the mesh of the params must be one of jax.local_devices(), got "
            f"{mesh.size} devices of several hosts."
        )
    return mesh


def on_each_device(function: Callable[..., Any], mesh: Mesh | None, *sharded: bool) -> Callable[..., Any]:
    """`function` run by every device of a mesh on its own share, with no word between them; itself without a mesh.

    Args:
      sharded: of each argument, whether it is shared out by its first axis (as results are) or everywhere the same.
    """
    if mesh is None:
        return function
    share = PartitionSpec(mesh.axis_names)
    specs = tuple(share if of_tiles else PartitionSpec() for of_tiles in sharded)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False)


def _pad_to_multiple(arrays: Any, of: int) -> Any:
    """The leading axis filled up with copies of its first entry."""
    padding = -len(jax.tree.leaves(arrays)[0]) % of
    if not padding:
        return arrays
    return jax.tree.map(lambda x: jnp.concatenate([x, x[:1].repeat(padding, axis=0)]), arrays)


def _map_tiles(function: Callable[[Any], Any], arrays: Any, batch_size: int) -> Array:
    """`function` over the leading axis of `arrays`, up to `batch_size` at a time by vmap, one batch after another."""
    num_tiles = len(jax.tree.leaves(arrays)[0])
    batches = -(-num_tiles // batch_size)
    batch_size = -(-num_tiles // batches)  # 17 tiles, 8 in flight, are three batches of 6 rather than of 8
    arrays = _pad_to_multiple(arrays, batch_size)  # a remainder would be a second copy of the whole program
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
        return _map_tiles(functools.partial(_encode_tile, params, config=config), tiles, batch_size)

    shared_out = _pad_to_multiple(tiles, mesh.size) if mesh else tiles
    return on_each_device(encode, mesh, False, True)(params, shared_out)[: len(tiles)]


def model_params(params: Params) -> Params:
    """What the tower and connector need; a language model carried beside them stays out of the program."""
    params = {"vision_model": params["vision_model"], "connector": params["connector"]}
    mesh = mesh_of(params)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return params
    # Of Explicit axes, `jax.make_mesh`'s default, every step of a program would have to say how its result is laid out.
    automatic = Mesh(mesh.devices, mesh.axis_names)
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(automatic, x.sharding.spec)), params)


# ---------------------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("config",))
def _vision_features(params, pixel_values, pixel_attention_mask, *, config):
    module = VisionTransformer(config)

    def tower(arrays):
        tile, mask = arrays
        return module.apply({"params": params}, tile.astype(config.dtype), mask)

    return _map_tiles(tower, (pixel_values, pixel_attention_mask), 1)


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
    config = resolve(config, params, ("vision",))
    return _vision_features(params["vision_model"], pixel_values, pixel_attention_mask, config=config)


@functools.partial(jax.jit, static_argnames=("config", "batch_size", "mesh"))
def _encode_tiles(params, tiles, *, config, batch_size, mesh):
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
    config, params = resolve(config, params), model_params(params)
    return _encode_tiles(params, tiles, config=config, batch_size=tiles_in_flight(batch_size), mesh=mesh_of(params))


# ---------------------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("config", "batch_size", "mesh", "resampling"))
def _encode_pixels(params, images, *, config, batch_size, mesh, resampling):
    """(B, H, W, 3) of exact static shape -> (B, N * T, D): the whole pipeline in one program."""
    tile = functools.partial(tile_image, tiling=config.tiling, implementation=resampling)
    tiles = jax.vmap(tile)(images)
    tokens = trace_encode(params, tiles.reshape(-1, *tiles.shape[2:]), config, batch_size, mesh)
    return tokens.reshape(len(images), -1, tokens.shape[-1])


@functools.partial(jax.jit, static_argnames=("num_tiles", "config", "batch_size", "mesh", "resampling"))
def _encode_padded(params, padded, filters, *, num_tiles, config, batch_size, mesh, resampling):
    """The same for an image in its bucket, sizes and filters being data: one program per (bucket, num_tiles)."""
    tiles = tile_padded(padded, filters, num_tiles=num_tiles, tiling=config.tiling, implementation=resampling)
    return trace_encode(params, tiles, config, batch_size, mesh)


def encode_image(
    params: Params, image: Any, *, config: ModelConfig = SMOLVLM_256M, batch_size: int | None = None
) -> Float[Array, "T D"] | Float[Array, "B T D"]:
    """Visual tokens of an image of any size, or of a batch of images of one size.

    Args:
      params: with "vision_model" and "connector".
      image: whatever `load_image` takes, or (B, H, W, 3) arrays. A `jax.Array`, traced or not, must be uint8
        (H, W, 3) or (B, H, W, 3): then the pixels are resampled inside the program, so that this function works in
        your own `jit`, `grad` and `vmap`.
      batch_size: tiles in flight; None is 1 on a CPU, 8 on a TPU and 17 on a GPU.

    Returns:
      (N * tokens_per_tile, D_text), tiles row-major and the global one last: the order of the `<image>` tokens in
      the prompt. (B, N * tokens_per_tile, D_text) for a batch.

    Raises:
      ImageError, FileNotFoundError: not an image. ValueError: not arrays or params that fit.
    """
    if isinstance(image, jax.Array):
        is_batch = image.ndim == 4
        check_array("image", image, ("B", "H", "W", 3) if is_batch else ("H", "W", 3), np.uint8)
    else:
        is_batch = isinstance(image, np.ndarray) and image.ndim == 4
        if is_batch and not len(image):
            raise ValueError(f"Expected a batch of at least one image, got an array of shape {image.shape}.")
        image = np.stack([load_image(one) for one in image]) if is_batch else load_image(image)
    resolved = resolve(config, params)
    params = model_params(params)
    static = {"config": resolved, "batch_size": tiles_in_flight(batch_size), "mesh": mesh_of(params)}
    if isinstance(image, jax.Array):
        batch = image if is_batch else image[None]
        tokens = _encode_pixels(params, batch, resampling=default_implementation(), **static)
        return tokens if is_batch else tokens[0]
    if is_batch:
        tiles = np.concatenate([tile_image_host(one, config.tiling) for one in image])
        tokens = _encode_tiles(params, tiles, **static)
        return tokens.reshape(len(image), -1, tokens.shape[-1])
    plan = plan_tiles(image.shape[0], image.shape[1], config.tiling)
    if fits_device(plan, config.tiling):
        filters = image_filters(plan, config.tiling, bucket_of(plan.height, plan.width))
        static |= {"num_tiles": plan.num_tiles, "resampling": default_implementation()}
        tokens = _encode_padded(params, pad_to_bucket(image), filters, **static)
    else:
        tokens = _encode_tiles(params, tile_image_host(image, config.tiling), **static)
    return tokens.reshape(-1, tokens.shape[-1])


def check_tiles(tiles: Any, config: ModelConfig) -> None:
    """Raises a ValueError for tiles that are not uint8 (N, M, M, 3) of the config's size."""
    side = config.tiling.tile_size
    check_array("tiles", tiles, ("N", side, side, 3), np.uint8)


def check_array(name: str, array: Any, shape: tuple, dtype: Any) -> None:
    """Rank, sides and dtype of an argument; a letter in `shape` stands for any positive size, one letter for one."""
    found = tuple(getattr(array, "shape", ()))
    sizes: dict[Any, int] = {}
    fits = len(found) == len(shape) and all(
        size > 0 and size == (sizes.setdefault(want, size) if isinstance(want, str) else want)
        for want, size in zip(shape, found, strict=True)
    )
    kind: Any = getattr(array, "dtype", None)
    if not fits or not jnp.issubdtype(kind, dtype):
        expected = f"({', '.join(map(str, shape))})"
        hint = ""
        if len(found) >= 3 and found[-3] == 3 and found[-1] != 3:
            hint = " Channels come last here: np.moveaxis(x, -3, -1)."
        raise ValueError(
            f"{name} must be {np.dtype(dtype).name if dtype is not np.floating else 'floating'} of shape {expected}, "
            f"got {kind} of shape {found}.{hint}"
        )
