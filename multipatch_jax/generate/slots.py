"""The state of a generation: a batch of slots, each of which holds one chat and its answer so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from multipatch_jax.config import TextConfig
from multipatch_jax.generate.sampling import Sampling
from multipatch_jax.generate.settings import GenerationSettings
from multipatch_jax.nn import KVCache

NEUTRAL = GenerationSettings().sampling()  # of a slot without a chat: a step filters logits if any slot asks for it


class Slots(NamedTuple):
    """A pytree of arrays; row b of each is slot b.

    Attributes:
      cache: keys and values of the tokens in each layer, one token a column; as `nn.init_packed_cache` has them where
        compiled code runs the decoder, else as `nn.init_cache`. Columns from `lengths[b]` on are undefined: a
        column of slot b is read only after it has been written for the chat that the slot holds.
      lengths: columns that are written. The last token of an answer is not among them until the next step.
      last_ids: the last token of the answer, which the next step reads.
      active: whether the slot holds an answer that goes on. A step leaves the others as they are.
      seen: which ids the prompt and the answer hold, for the repetition penalty.
      sampling: how the next token is chosen.
    """

    cache: KVCache | tuple[KVCache, ...]
    lengths: Int32[Array, " B"]
    last_ids: Int32[Array, " B"]
    active: Bool[Array, " B"]
    seen: Bool[Array, "B V"]
    sampling: Sampling


def new_slots(cache: KVCache | tuple[KVCache, ...], config: TextConfig) -> Slots:
    """Return slots that hold no chats.

    Args:
      cache: an empty one, of all slots.
      config: the language model's.
    """
    batch_size = jax.tree.leaves(cache)[0].shape[-4]  # (..., B, kv_heads, d, capacity)
    return Slots(
        cache=cache,
        lengths=jnp.zeros(batch_size, jnp.int32),
        last_ids=jnp.zeros(batch_size, jnp.int32),
        active=jnp.zeros(batch_size, bool),
        seen=jnp.zeros((batch_size, config.vocab_size), bool),
        sampling=Sampling(*(jnp.full(batch_size, value) for value in NEUTRAL)),
    )
