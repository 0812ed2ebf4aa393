"""Encode tiles as visual tokens, or normalised pixels as features of the vision tower: the public calls."""

import numbers
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from multipatch_jax.arguments import check_array, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import prepare_execution
from multipatch_jax.encode.programs import encode_tiles_program, vision_features_program
from multipatch_jax.nn import Compute
from multipatch_jax.params import Params
from multipatch_jax.presets import SMOLVLM_256M


def encode_tiles(
    params: Params,
    tiles: UInt8[Array, "N M M 3"] | UInt8[np.ndarray, "N M M 3"],
    *,
    config: ModelConfig = SMOLVLM_256M,
    compute: Compute = Compute(),
    batch_size: int | None = None,
) -> Float[Array, "N T D"]:
    """Encode tiles as visual tokens.

    Args:
      params: with "vision_model" and "connector". If they are laid out on a mesh, its devices share the tiles.
      tiles: at least one, as `tile_image` or `tile_image_host` makes them: uint8, M = config.tiling.tile_size.
      config: the model's.
      compute: how to compute.
      batch_size: most tiles in flight on a device; None chooses by backend (`encode.tiles_in_flight`).

    Returns:
      (N, T, D), T being config.tiling.tokens_per_tile, in `compute.dtype` or, if that is None, the dtype of the params.

    Raises:
      ValueError: `tiles` or `params` do not fit `config`, a setting of `compute` cannot be had, or `batch_size` is not
        a positive integer.
    """
    check_tiles(tiles, config)
    params, execution = prepare_execution(params, config, compute, batch_size)
    return encode_tiles_program(params, tiles, execution=execution)


@overload
def vision_features(
    params: Params,
    pixel_values: Any,
    *,
    config: ModelConfig = ...,
    compute: Compute = ...,
    pixel_attention_mask: Any = ...,
    layers: None = ...,
) -> Float[Array, "N P C"]: ...
@overload
def vision_features(
    params: Params,
    pixel_values: Any,
    *,
    config: ModelConfig = ...,
    compute: Compute = ...,
    pixel_attention_mask: Any = ...,
    layers: Sequence[int],
) -> tuple[Float[Array, "N P C"], dict[int, Float[Array, "N P C"]]]: ...
def vision_features(
    params: Params,
    pixel_values: Float[Array, "N M M 3"] | Float[np.ndarray, "N M M 3"],
    *,
    config: ModelConfig = SMOLVLM_256M,
    compute: Compute = Compute(),
    pixel_attention_mask: Bool[Array, "N M M"] | Shaped[np.ndarray, "N M M"] | None = None,
    layers: Sequence[int] | None = None,
) -> Float[Array, "N P C"] | tuple[Float[Array, "N P C"], dict[int, Float[Array, "N P C"]]]:
    """Compute the features of the vision tower: after its `post_layernorm`, before the connector.

    The tiles are computed one after another.

        features = mp.vision_features(params, pixel_values, config=config)
        features, inner = mp.vision_features(params, pixel_values, config=config, layers=(3, -2))
        inner[3], inner[-2]

    Args:
      params: with "vision_model".
      pixel_values: normalised pixels (about -1 to 1), channels last. M may be any multiple of the patch size, not only
        config.tiling.tile_size.
      config: the model's.
      pixel_attention_mask: True for the real pixels of partly filled tiles; None if all pixels are real. Integers 0 and
        1, as the reference's processor makes them, are taken too. A patch without a real pixel has meaningless
        features, and the other patches do not depend on it.
      layers: which inner features to return too, numbered as in the reference's `hidden_states`: 0 is the embeddings, i
        the result of layer i, and -1 that of the last layer, before `post_layernorm`. With them the layers run in Flax,
        whose results differ from the compiled encoder's in the last bits. None costs nothing.

    Returns:
      (N, P, C), the patches row-major; with `layers`, also a dict from each number asked for to its (N, P, C). All are
      in `compute.dtype` or, if that is None, the dtype of the params.

    Raises:
      ValueError: shapes or dtypes do not fit, `params` are not of this config, there is no such layer, or a setting of
        `compute` cannot be had.
    """
    require_type("config", config, ModelConfig)
    check_array("pixel_values", pixel_values, ("N", "M", "M", 3), np.floating)
    if pixel_attention_mask is not None:
        pixel_attention_mask = _as_bool(pixel_attention_mask, pixel_values.shape[:3])
    chosen = _check_layers(() if layers is None else layers, config.vision.num_hidden_layers)
    params, execution = prepare_execution(params, config, compute, parts=("vision",))
    arrays = (pixel_values, pixel_attention_mask)
    features, inner = vision_features_program(params, *arrays, layers=chosen, execution=execution)
    return features if layers is None else (features, dict(zip(chosen, inner, strict=True)))


def _as_bool(mask: Any, shape: tuple[int, ...]) -> Any:
    """Return a mask of bools, or of integers 0 and 1, as bools; raise a ValueError for another shape, dtype or value.

    A traced mask has no values to look at, so it must be of bools.
    """
    name = "pixel_attention_mask"
    values = None if isinstance(mask, Tracer) or not hasattr(mask, "dtype") else np.asarray(mask)
    if values is not None and np.issubdtype(values.dtype, np.integer):
        if values.size and not 0 <= values.min() <= values.max() <= 1:
            raise ValueError(f"{name} must be bools, or integers 0 and 1, got values {values.min()} to {values.max()}.")
        mask = values.astype(bool)
    check_array(name, mask, shape, np.bool_)
    return mask


def _check_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    def exists(number: Any) -> bool:
        is_integer = isinstance(number, numbers.Integral) and not isinstance(number, bool)
        return is_integer and -num_layers - 1 <= int(number) <= num_layers

    if not isinstance(layers, Iterable) or not all(map(exists, layers)):
        raise ValueError(f"layers must be integers from {-num_layers - 1} to {num_layers}, got {layers!r}.")
    return tuple(map(int, layers))


def check_tiles(tiles: Any, config: ModelConfig) -> None:
    """Raise a ValueError unless `tiles` are uint8 (N, M, M, 3), N at least 1 and M = config.tiling.tile_size."""
    require_type("config", config, ModelConfig)
    side = config.tiling.tile_size
    check_array("tiles", tiles, ("N", side, side, 3), np.uint8)
