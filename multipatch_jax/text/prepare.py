"""Make a language model's inputs from texts and images in one call: tokenise, encode, embed and pack."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from multipatch_jax.arguments import require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import encode_images, prepare_execution
from multipatch_jax.nn import Compute
from multipatch_jax.params import Params
from multipatch_jax.text.messages import Chat
from multipatch_jax.text.packing import embed_tokens, embedding_table, pack
from multipatch_jax.text.processor import Processor
from multipatch_jax.text.video import encode_frames


def prepare_inputs(
    params: Params,
    texts: Sequence[str | Chat],
    images: Sequence[Any] = (),
    *,
    config: ModelConfig,
    processor: Processor,
    padding_side: str = "left",
    max_length: int | None = None,
    add_generation_prompt: bool | None = None,
    compute: Compute = Compute(),
    batch_size: int | None = None,
) -> dict[str, jax.Array | np.ndarray]:
    """Make the inputs of a decoder of the family from texts, images and the frames of videos.

    Args:
      params: loaded with parts=("vision", "connector", "embeddings").
      texts, images, max_length, add_generation_prompt: as in a call of `Processor`.
      padding_side: "left", because a decoder that generates goes on at the end of a row, and padding there would give
        the shorter texts wrong answers; training takes either side. Or "right".
      config: the model's.
      processor: of the same checkpoint.
      compute: how the images are encoded.
      batch_size: most tiles in flight on a device; None chooses by backend (`encode.tiles_in_flight`).

    Returns:
      A dict of

      * "inputs_embeds": (B, S, D) in the dtype of the embeddings.
      * "attention_mask": (B, S) int32, 0 at padding.
      * "position_ids": (B, S) int32, counted from 0 at the first token that is not padding. Padding on the left has
        position 0; padding on the right repeats the last position.

    Raises:
      ValueError: as `Processor`; or `params` do not fit the config, have no embeddings, or have too few for the
        tokenizer's ids; or a setting of `compute` cannot be had, or `batch_size` is not a positive integer.
      ImageError, FileNotFoundError: as `Processor`.
    """
    require_type("processor", processor, Processor)
    require_type("config", config, ModelConfig)
    prepare_execution(params, config, compute, batch_size)  # called for its errors, before any work on the device
    width, expected = embedding_table(params).shape[1], config.connector.text_hidden_size
    if width != expected:
        raise ValueError(f"The token embeddings must be as wide as the visual tokens, {expected}, got {width}.")
    inputs = processor(
        texts,
        images,
        config=config,
        padding_side=padding_side,
        max_length=max_length,
        add_generation_prompt=add_generation_prompt,
    )
    embeddings = embed_tokens(params, inputs.input_ids)
    how = {"config": config, "compute": compute, "batch_size": batch_size}
    of_images = iter(encode_images(params, inputs.images, **how))
    of_videos = (encode_frames(params, frames, **how) for frames in inputs.videos)
    tokens = [next(of_images if kind == "image" else of_videos) for kind in inputs.order]
    return {
        "inputs_embeds": pack(inputs.input_ids, embeddings, tokens, image_token_id=config.image_token_id),
        "attention_mask": inputs.attention_mask,
        "position_ids": np.maximum(np.cumsum(inputs.attention_mask, axis=1, dtype=np.int32) - 1, 0),
    }
