"""The language model's loss on chats with images, from tiles to the cross entropy of the answers' tokens."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from multipatch_jax.arguments import check_array, require_type
from multipatch_jax.config import ModelConfig, TextConfig
from multipatch_jax.encode import encode_tiles
from multipatch_jax.generate import text_features
from multipatch_jax.nn import Compute, logits, resolve_decoder_compute
from multipatch_jax.params import Params
from multipatch_jax.text import embed_tokens, pack

IGNORED = -100  # the label of positions without a loss, as `labels_for` makes it
CHUNK = 256  # most positions of a row whose logits are in memory: 8 rows of SmolVLM are 0.4 GB


def language_model_loss(
    params: Params,
    batch: Mapping[str, Any],
    rng: Any = None,
    encode: Callable[[Params, jax.Array], jax.Array] | None = None,
    *,
    config: ModelConfig,
    compute: Compute = Compute(),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return (total, count): the summed cross entropy of the labelled tokens, and how many they are.

    The mean total / count is the loss that transformers gives. A train step takes the pair as it is, and gradients flow
    into decoder, embeddings, connector and tower, as far as they are trained:

        loss_fn = functools.partial(mp.train.language_model_loss, config=config, compute=compute)
        step = mp.train.make_train_step(loss_fn, optimizer, config=config, compute=compute, trainable="text")

    Args:
      params: loaded with parts="all".
      batch: as `chat_batch` makes it: "input_ids", "attention_mask" and "labels", all (B, S), and "tiles", uint8
        (B, N, M, M, 3), the tiles of each row in the order of their places. Tiles after those that fill a row's places
        are padding. A row with more places than its tiles fill makes the loss NaN.
      rng: not used.
      encode: the function that a train step passes; None is `encode_tiles`, for an evaluation.
      config: the model's.
      compute: how to compute, the same as the train step's.

    Raises:
      ValueError: `params` or arrays do not fit, or the model is a retriever.
    """
    require_type("config", config, ModelConfig)
    if config.text is None or config.embedding_size is not None:
        raise ValueError(
            f"The loss needs a language model with logits, got a config with text={type(config.text).__name__} and "
            f"embedding_size={config.embedding_size}: take a checkpoint that has a language model and its lm_head."
        )
    if encode is not None and not callable(encode):
        raise ValueError(f"encode must be a function (params, tiles) or None, got {type(encode).__name__}.")
    ids, mask, labels, tiles = _arrays(batch, config)
    packed = embed_tokens(params, ids)
    if tiles.shape[1]:
        flat = tiles.reshape(-1, *tiles.shape[2:])
        tokens = encode(params, flat) if encode else encode_tiles(params, flat, config=config, compute=compute)
        tokens = tokens.reshape(len(tiles), -1, tokens.shape[-1])
        packed = jax.vmap(functools.partial(_pack_row, image_token_id=config.image_token_id))(ids, packed, tokens)
    hidden = text_features(params, packed, config=config, attention_mask=mask, compute=compute)
    decided = resolve_decoder_compute(params, compute)
    total = _cross_entropy(params, hidden[:, :-1], labels[:, 1:], config.text, decided)
    return total, jnp.sum(labels[:, 1:] != IGNORED).astype(jnp.float32)


def _arrays(batch: Mapping[str, Any], config: ModelConfig) -> tuple[Any, ...]:
    names = ("input_ids", "attention_mask", "labels", "tiles")
    if not isinstance(batch, Mapping) or not set(names) <= batch.keys():
        found = f"a dict of {sorted(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"A batch must have {', '.join(names)}, as chat_batch makes it, got {found:.200}.")
    ids, mask, labels, tiles = (batch[name] for name in names)
    check_array("input_ids", ids, ("B", "S"), np.integer)
    check_array("labels", labels, tuple(ids.shape), np.integer)
    side = config.tiling.tile_size
    if tiles.shape[1:2] != (0,):  # a batch without images
        check_array("tiles", tiles, (ids.shape[0], "N", side, side, 3), np.uint8)
    return ids, mask, labels, tiles


def _pack_row(ids: Any, embeddings: Any, tokens: Any, *, image_token_id: int) -> Float[Array, "S D"]:
    """Put as many of a row's visual tokens as it has places into them; the others are those of padding."""
    places = jnp.sum(ids == image_token_id)
    return pack(ids[None], embeddings[None], tokens, image_token_id=image_token_id, num_tokens=places)[0]


def _cross_entropy(
    params: Params,
    hidden: Float[Array, "B S D"],
    labels: Int[Array, "B S"],
    config: TextConfig,
    compute: Compute,
) -> Float[Array, ""]:
    """Return the sum of the cross entropies, in chunks of positions whose logits the backward pass computes again."""
    batch, length, width = hidden.shape
    chunks = max(-(-length // CHUNK), 1)
    padding = -length % chunks
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(batch, chunks, -1, width)
    labels = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=IGNORED).reshape(batch, chunks, -1)

    def add(total, chunk):
        hidden, labels = chunk
        scores = logits(params, hidden, config, compute)
        # A sum over the one id that is the label, rather than a gather: ids may be split over devices.
        is_label = jnp.arange(scores.shape[-1])[None, None] == labels[..., None]
        losses = jax.nn.logsumexp(scores, axis=-1) - jnp.sum(jnp.where(is_label, scores, 0), axis=-1)
        losses = jnp.where((labels >= 0) & (labels < scores.shape[-1]), losses, jnp.nan)  # no id of this vocabulary
        return total + jnp.sum(jnp.where(labels == IGNORED, 0, losses)), None

    of_chunks = jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(labels, 1, 0)
    return jax.lax.scan(jax.checkpoint(add), jnp.zeros((), jnp.float32), of_chunks)[0]
