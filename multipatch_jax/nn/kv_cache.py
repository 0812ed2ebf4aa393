"""The decoder's memory of earlier tokens, and the arrangement of its params for one token at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multipatch_jax.config import TextConfig


class KVCache(NamedTuple):
    """One layer's keys and values of the tokens of several rows. Column i is for the token at position i of its text.

    For compiled code, one `KVCache` holds all layers, along a first axis (`init_packed_cache`).

    Attributes:
      k: keys, rotated by their positions. The columns are the last axis, because the product with the queries is then
        more than twice as fast on a CPU as with the axes of `v`.
      v: values.
    """

    k: Float[Array, "B kv_heads d capacity"]
    v: Float[Array, "B kv_heads capacity d"]


def init_cache(config: TextConfig, batch_size: int, capacity: int, dtype: Any) -> tuple[KVCache, ...]:
    """Return an empty cache of each layer: `batch_size` rows of `capacity` columns of zeros."""
    rows = batch_size, config.num_key_value_heads
    k, v = (*rows, config.head_dim, capacity), (*rows, capacity, config.head_dim)
    return tuple(KVCache(jnp.zeros(k, dtype), jnp.zeros(v, dtype)) for _ in range(config.num_hidden_layers))


def write_cache(
    cache: KVCache,
    columns: Int[Array, "B S"],
    k: Float[Array, "B S kv_heads d"],
    v: Float[Array, "B S kv_heads d"],
) -> KVCache:
    """Return the cache with the keys and values of tokens in their columns; columns outside it are dropped."""
    new = KVCache(k.astype(cache.k.dtype), v.astype(cache.v.dtype))
    if columns.shape[1] > 1:
        return _scatter(cache, columns, new)
    return jax.lax.platform_dependent(cache, columns, new, tpu=write_one_by_one, default=_scatter)


def _scatter(cache: KVCache, columns: Int[Array, "B S"], new: KVCache) -> KVCache:
    rows = jnp.arange(len(columns), dtype=columns.dtype)[:, None]
    return KVCache(  # an indexed result has the axes of the indices first: (B, S, kv_heads, d)
        cache.k.at[rows, :, :, columns].set(new.k, mode="drop"),
        cache.v.at[rows, :, columns, :].set(new.v, mode="drop"),
    )


def write_one_by_one(cache: KVCache, columns: Int[Array, "B 1"], new: KVCache) -> KVCache:
    """Write one token of each row, a row after another. A TPU would copy the whole cache for a scatter.

    Args:
      new: of the tokens, (B, 1, kv_heads, d).
    """
    k, v = new.k.transpose(0, 2, 3, 1), new.v.transpose(0, 2, 1, 3)  # in the loop they would give it another layout
    is_there = jnp.logical_and(columns >= 0, columns < cache.k.shape[-1])
    places = jnp.where(is_there, columns, 0).astype(jnp.int32)

    def write(row, array, tokens, axis):
        start = [jnp.int32(0)] * 4
        start[0], start[axis] = row, places[row, 0]
        token = jax.lax.dynamic_slice_in_dim(tokens, row, 1)
        old = jax.lax.dynamic_slice(array, start, token.shape)
        return jax.lax.dynamic_update_slice(array, jnp.where(is_there[row, 0], token, old), start)

    def write_row(row, cache):
        return KVCache(write(row, cache.k, k, 3), write(row, cache.v, v, 2))

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(len(columns)), write_row, cache)


def split_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Return params whose decoder layers are arrays of their own: text_model/layers/0/..., not one stack.

    XLA copies a layer's weights and cache out of a stack before it reads them, and reads split ones in place. A program
    of a few tokens spends its time on reading, so it is faster with split layers; it takes longer to compile. No file
    has split layers. Every split array is a copy.

    Args:
      params: with "text_model"; the other parts are returned as they are.
    """
    text = params["text_model"]
    stack = text["layers"]
    layers = {
        str(index): jax.tree.map(lambda x, index=index: x[index], stack)
        for index in range(len(jax.tree.leaves(stack)[0]))
    }
    return params | {"text_model": text | {"layers": layers}}
