"""The moves of a generation: admit a chat into a slot, make one token for every slot, release a slot, fork all.

| move | compiled once for each |
|---|---|
| `admit` | number of tokens in a chunk, first chunk of a prompt or not |
| `step` | |
| `release`, `fork` | |

Each takes the whole state, `Slots`, and returns it changed; the state is donated, so that the cache is updated in
place, except by `fork`. Lengths, ids, rows and settings are data.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from multipatch_jax.config import TextConfig
from multipatch_jax.generate.sampling import Sampling, sample
from multipatch_jax.generate.slots import NEUTRAL, Slots, new_slots
from multipatch_jax.nn import (
    Compute,
    KVCache,
    LlamaModel,
    decoder_prefill,
    decoder_step,
    init_cache,
    init_packed_cache,
    logits,
)
from multipatch_jax.params import Params


@dataclasses.dataclass(frozen=True)
class Engine:
    """What decides the programs of the moves, beside the shapes of their arguments: the static argument of each move.

    Attributes:
      text: the language model's config.
      image_token_id: of the config; a prompt has visual tokens in the places of these ids.
      compute: how to compute, with nothing left automatic.
      batch_size: number of slots.
      capacity: columns of a slot.
      cache_dtype: of keys and values.
      is_packed: whether params have "packed", with which compiled code runs the decoder.
    """

    text: TextConfig
    image_token_id: int
    compute: Compute
    batch_size: int
    capacity: int
    cache_dtype: str
    is_packed: bool = False


class Chunk(NamedTuple):
    """Some tokens of a prompt, padded to a fixed number S.

    Attributes:
      row: the slot.
      start: the place of the first token in the prompt.
      num_real: how many of the S tokens are real; padding follows them.
      last: whether the prompt ends here.
      ids: of the tokens.
      visual_tokens: in the places of `<image>` ids; what stands in other places is not read.
      seen: which ids the prompt holds up to the end of this chunk.
      sampling: how the answer's tokens are chosen; scalars.
      allowed: the ids that the first token may have, as `sampling.pack_ids` packs them.
    """

    row: Int32[Array | np.ndarray, ""]
    start: Int32[Array | np.ndarray, ""]
    num_real: Int32[Array | np.ndarray, ""]
    last: Bool[Array | np.ndarray, ""]
    ids: Int32[Array | np.ndarray, " S"]
    visual_tokens: Float[Array | np.ndarray, "S D"]
    seen: Bool[Array | np.ndarray, " V"]
    sampling: Sampling
    allowed: UInt32[Array | np.ndarray, " words"]


Token = tuple[Int32[Array, " B"], Float32[Array, " B"]]  # id and logprob of each row, as `sample` returns them


@functools.partial(jax.jit, static_argnames=("engine",))
def start(*, engine: Engine) -> Slots:
    """Return slots that hold no chats."""
    empty = init_packed_cache if engine.is_packed else init_cache
    return new_slots(empty(engine.text, engine.batch_size, engine.capacity, engine.cache_dtype), engine.text)


@functools.partial(jax.jit, static_argnames=("first", "engine"), donate_argnames=("slots",))
def admit(params: Params, slots: Slots, chunk: Chunk, *, first: bool, engine: Engine) -> tuple[Slots, Token]:
    """Put a chunk of a prompt into a slot; with the last chunk, the slot becomes active and has its first token.

    The first chunk attends to as many columns as it has tokens, and later chunks to all columns of their slot. Other
    slots are neither read nor written. Padding is written after the real tokens, where the next tokens overwrite it.

    Args:
      params: of a model, as `Model.decoder` has them.
      slots: the state, which is donated.
      chunk: the chunks of a prompt come one after another.
      first: whether the prompt begins here, and `chunk.start` is 0.
      engine: the static argument.

    Returns:
      (slots, token): the token that follows the chunk, in arrays of one row; it counts if the prompt ends here.
    """
    row, vocabulary = chunk.row, slots.seen.shape[1]
    places = jnp.arange(len(chunk.ids), dtype=jnp.int32)
    table = params["text_model"]["embed_tokens"]["embedding"]
    is_image = (chunk.ids == engine.image_token_id)[:, None]
    x = jnp.where(is_image, chunk.visual_tokens, table[chunk.ids])[None]
    length = jnp.asarray(chunk.start + chunk.num_real)
    if isinstance(slots.cache, KVCache):  # of all layers: compiled code runs the decoder
        scores, cache = decoder_prefill(
            params["packed"], x[0], row, chunk.start, chunk.num_real - 1, slots.cache, engine.text
        )
    else:
        columns = len(chunk.ids) if first else engine.capacity
        own = tuple(_first_columns(layer, row, columns) for layer in slots.cache)
        hidden, own = _decoder(engine, params, x, (chunk.start + places)[None], own)
        cache = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, row, 0), slots.cache, own
        )
        last_hidden = jax.lax.dynamic_slice_in_dim(hidden[0], chunk.num_real - 1, 1)
        scores = logits(params, last_hidden, engine.text, engine.compute)
    sampling = jax.tree.map(lambda value: jnp.asarray(value)[None], chunk.sampling)
    seen = jnp.asarray(chunk.seen)
    ids, logprobs = sample(scores, sampling, length[None], seen[None], jnp.asarray(chunk.allowed)[None])
    seen = seen.at[jnp.where(chunk.last, ids, vocabulary)].set(True, mode="drop")
    slots = Slots(
        cache=cache,
        lengths=slots.lengths.at[row].set(length),
        last_ids=slots.last_ids.at[row].set(ids[0]),
        active=slots.active.at[row].set(chunk.last),
        seen=slots.seen.at[row].set(seen),
        sampling=jax.tree.map(lambda whole, value: whole.at[row].set(value), slots.sampling, chunk.sampling),
    )
    return slots, (ids, logprobs)


@functools.partial(jax.jit, static_argnames=("engine",), donate_argnames=("slots",))
def step(
    params: Params, slots: Slots, allowed: UInt32[Array | np.ndarray, "B words"], *, engine: Engine
) -> tuple[Slots, Token]:
    """Make one token for every slot.

    Args:
      params: of a model, as `Model.decoder` has them.
      slots: the state, which is donated. Slots that are not active are computed too, and left as they are.
      allowed: the ids that each slot's token may have, as `sampling.pack_ids` packs them.
      engine: the static argument.

    Returns:
      (slots, token): the next token of each slot; it counts if the slot is active.
    """
    active = slots.active
    positions = jnp.where(active, slots.lengths, engine.capacity)  # a column that is not there is not written
    x = _embed(params["text_model"]["embed_tokens"]["embedding"], slots.last_ids)
    if isinstance(slots.cache, KVCache):  # of all layers: compiled code runs the decoder
        scores, cache = decoder_step(params["packed"], x[:, 0], positions, slots.cache, engine.text)
    else:
        hidden, cache = _decoder(engine, params, x, positions[:, None], slots.cache)
        scores = logits(params, hidden[:, 0], engine.text, engine.compute)
    ids, logprobs = sample(scores, slots.sampling, slots.lengths + 1, slots.seen, jnp.asarray(allowed))
    slots = slots._replace(
        cache=cache,
        lengths=slots.lengths + active.astype(jnp.int32),
        last_ids=jnp.where(active, ids, slots.last_ids),
        seen=slots.seen.at[jnp.arange(len(ids)), jnp.where(active, ids, slots.seen.shape[1])].set(True, mode="drop"),
    )
    return slots, (ids, logprobs)


@jax.jit
def fork(slots: Slots) -> Slots:
    """Return a copy of slots, which goes on by itself."""
    return jax.tree.map(jnp.copy, slots)


@functools.partial(jax.jit, donate_argnames=("slots",))
def release(slots: Slots, row: Int32[Array, ""]) -> Slots:
    """Free the slot of an answer that has ended, and return the slots."""
    sampling = jax.tree.map(lambda whole, value: whole.at[row].set(value), slots.sampling, NEUTRAL)
    return slots._replace(active=slots.active.at[row].set(False), sampling=sampling)


def _embed(table: Float[Array, "V D"], ids: Int32[Array, " B"]) -> Float[Array, "B 1 D"]:
    """Look up a token of each row. For a gather of several, a TPU would copy the whole table into another layout."""
    return jax.lax.platform_dependent(
        table,
        ids,
        tpu=lambda table, ids: jax.lax.map(lambda one: jax.lax.dynamic_slice_in_dim(table, one, 1), ids),
        default=lambda table, ids: table[ids][:, None],
    )


def _decoder(engine: Engine, params: Params, x: Any, position_ids: Any, cache: Any) -> tuple[Any, Any]:
    """Run the decoder over embeddings (B, S, D) that follow what a cache holds; return (hidden, cache)."""
    model = LlamaModel(engine.text, engine.compute)
    layers = {name: value for name, value in params["text_model"].items() if name != "embed_tokens"}
    return model.apply({"params": layers}, x.astype(engine.compute.dtype), position_ids, cache=cache)


def _first_columns(layer: KVCache, row: Int32[Array | np.ndarray, ""], number: int) -> KVCache:
    """Return the first columns of one row."""
    k, v = (jax.lax.dynamic_slice_in_dim(whole, row, 1) for whole in layer)
    return KVCache(k[..., :number], v[..., :number, :])
