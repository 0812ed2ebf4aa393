"""Hidden states and logits of the text decoder, for whole texts at once: for training, scoring and retrieval."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Float32, Int, Shaped

from multipatch_jax.arguments import LARGEST_INT, check_array, is_kind, require_tree, require_type
from multipatch_jax.config import ModelConfig, TextConfig
from multipatch_jax.nn import Compute, LlamaModel, logits, resolve_decoder_compute
from multipatch_jax.params import Params, check_params, check_parts


def text_features(
    params: Params,
    inputs_embeds: Float[Array | np.ndarray, "B S D"],
    *,
    config: ModelConfig,
    attention_mask: Shaped[Array | np.ndarray, "B S"] | None = None,
    position_ids: Int[Array | np.ndarray, "B S"] | None = None,
    compute: Compute = Compute(),
) -> Float[Array, "B S D"]:
    """Compute the hidden states of the text decoder, after its final norm.

        inputs = mp.prepare_inputs(params, texts, images, config=config, processor=processor)
        features = mp.text_features(params, config=config, **inputs)

    A token sees itself and the real tokens before it. Padding, on either side, changes no result of a real token.

    Args:
      params: loaded with parts="all".
      inputs_embeds: as `prepare_inputs` and `text.pack` make them.
      config: the model's.
      attention_mask: bools, or integers 0 and 1. 0 is padding, whose own results are meaningless. None means that all
        tokens are real.
      position_ids: at least 0. None counts the real tokens of each row, from 0.
      compute: how to compute. `attention` and `encoder` are the vision tower's; the decoder has one of each.

    Returns:
      (B, S, D) in `compute.dtype` or, if that is None, the dtype of the params.

    Raises:
      ValueError: an argument has another shape, dtype or value, or `params` are not of this config or lack the text
        decoder.
    """
    return _features(*_prepare(params, inputs_embeds, config, attention_mask, position_ids, compute))


def text_logits(
    params: Params,
    inputs_embeds: Float[Array | np.ndarray, "B S D"],
    *,
    config: ModelConfig,
    attention_mask: Shaped[Array | np.ndarray, "B S"] | None = None,
    position_ids: Int[Array | np.ndarray, "B S"] | None = None,
    compute: Compute = Compute(),
) -> Float32[Array, "B S V"]:
    """Compute the logits of every next token. The arguments are those of `text_features`.

    Returns:
      (B, S, V); [b, s] are the logits of the token after token s. Float32, whatever the computation's dtype.

    Raises:
      ValueError: as in `text_features`, or the model is a retriever, which has no logits.
    """
    require_type("config", config, ModelConfig)
    if config.embedding_size is not None:
        raise ValueError(
            f"A retriever (config.embedding_size={config.embedding_size}) has no lm_head, so it gives no logits: use "
            f"text_features."
        )
    return _logits(*_prepare(params, inputs_embeds, config, attention_mask, position_ids, compute))


def _prepare(
    params: Any, inputs_embeds: Any, config: Any, attention_mask: Any, position_ids: Any, compute: Compute
) -> tuple[Any, ...]:
    """Check the arguments of a call, and return those of its program."""
    require_type("config", config, ModelConfig)
    require_tree("params", params)
    parts = check_parts(config, "text")
    assert config.text is not None
    text = params.get("text_model")
    if not isinstance(text, Mapping) or "layers" not in text:
        raise ValueError('These params have no text decoder: load them with parts="all".')
    check_params(params, config, parts if config.text.tie_word_embeddings else ("text",))
    check_array("inputs_embeds", inputs_embeds, ("B", "S", config.text.hidden_size), np.floating)
    shape = tuple(inputs_embeds.shape[:2])
    if attention_mask is not None:
        _check_integers("attention_mask", attention_mask, shape, 1)
    if position_ids is not None:
        _check_integers("position_ids", position_ids, shape, LARGEST_INT)
    used = {name: params[name] for name in ("text_model", "lm_head") if name in params}
    return used, inputs_embeds, attention_mask, position_ids, config.text, resolve_decoder_compute(params, compute)


def _check_integers(name: str, array: Any, shape: tuple[int, int], most: int) -> None:
    """Raise a ValueError unless `array` has integers from 0 to `most`, or bools where that is 1, and this shape.

    A traced array has no values to look at.
    """
    dtype = getattr(array, "dtype", np.dtype(object))
    kinds = (jnp.integer, jnp.bool_) if most == 1 else (jnp.integer,)
    if tuple(getattr(array, "shape", ())) != shape or not is_kind(dtype, *kinds):
        found = f"{dtype} of shape {array.shape}" if hasattr(array, "shape") else type(array).__name__
        raise ValueError(f"{name} must be integers of shape {shape}, as inputs_embeds, or None, got {found}.")
    if isinstance(array, (np.ndarray, jax.Array)) and not isinstance(array, Tracer):
        least, greatest = (int(extreme) for extreme in (np.min(array), np.max(array)))
        if least < 0 or greatest > most:
            raise ValueError(f"{name} must be integers from 0 to {most}, got {least} to {greatest}.")


@functools.partial(jax.jit, static_argnums=(4, 5))
def _features(
    params: Params,
    inputs_embeds: Float[Array, "B S D"],
    attention_mask: Shaped[Array, "B S"] | None,
    position_ids: Int[Array, "B S"] | None,
    config: TextConfig,
    compute: Compute,
) -> Float[Array, "B S D"]:
    mask = None if attention_mask is None else attention_mask.astype(bool)
    if position_ids is None:
        real = jnp.ones(inputs_embeds.shape[:2], bool) if mask is None else mask
        position_ids = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
    hidden, _ = LlamaModel(config, compute).apply(
        {"params": params["text_model"]}, inputs_embeds, position_ids.astype(jnp.int32), mask
    )
    return hidden


@functools.partial(jax.jit, static_argnums=(4, 5))
def _logits(
    params: Params,
    inputs_embeds: Float[Array, "B S D"],
    attention_mask: Shaped[Array, "B S"] | None,
    position_ids: Int[Array, "B S"] | None,
    config: TextConfig,
    compute: Compute,
) -> Float32[Array, "B S V"]:
    hidden = _features(params, inputs_embeds, attention_mask, position_ids, config, compute)
    return logits(params, hidden, config, compute)
