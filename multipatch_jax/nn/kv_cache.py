"""The decoder's memory of earlier tokens, and the arrangement of its params for one token at a time."""

from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multipatch_jax.config import TextConfig


class KVCache(NamedTuple):
    """Keys and values of the tokens of several rows. Column i of a row is for the token at position i of its text.

    The arrays of a cache for split layers (`split_layers`) have no axis of layers: such a cache is a tuple with one
    `KVCache` for each layer. In both forms the axis of rows is -4.

    Attributes:
      k: keys, rotated by their positions. The columns are the last axis, because the product with the queries is then
        more than twice as fast on a CPU as with the axes of `v`.
      v: values.
    """

    k: Float[Array, "*layers B kv_heads d capacity"]
    v: Float[Array, "*layers B kv_heads capacity d"]


Cache = KVCache | tuple[KVCache, ...]


@overload
def init_cache(
    config: TextConfig, batch_size: int, capacity: int, dtype: Any, *, split: Literal[True]
) -> tuple[KVCache, ...]: ...
@overload
def init_cache(config: TextConfig, batch_size: int, capacity: int, dtype: Any, *, split: bool = ...) -> Cache: ...
def init_cache(config: TextConfig, batch_size: int, capacity: int, dtype: Any, *, split: bool = False) -> Cache:
    """Return an empty cache: `batch_size` rows of `capacity` columns of zeros.

    Args:
      split: whether it is for params from `split_layers`.
    """
    layers, rows = config.num_hidden_layers, (batch_size, config.num_key_value_heads)
    k, v = (*rows, config.head_dim, capacity), (*rows, capacity, config.head_dim)
    if split:
        return tuple(KVCache(jnp.zeros(k, dtype), jnp.zeros(v, dtype)) for _ in range(layers))
    return KVCache(jnp.zeros((layers, *k), dtype), jnp.zeros((layers, *v), dtype))


def write_cache(cache: Cache, columns: Int[Array, "B S"], new: Any) -> Cache:
    """Return the cache with the keys and values of tokens in their columns; columns outside it are dropped.

    Args:
      new: (k, v) of all layers, each (layers, B, S, kv_heads, d); for a tuple, a list of each layer's (k, v).
    """
    if not isinstance(cache, KVCache):
        return tuple(_write(one, columns, *of_layer) for one, of_layer in zip(cache, new, strict=True))
    return _write(cache, columns, *(jnp.moveaxis(x, 0, 2) for x in new))


def _write(cache, columns, k, v):
    rows = jnp.arange(len(columns), dtype=columns.dtype)[:, None]
    return KVCache(  # an indexed result has the axes of the indices first: (B, S, *layers, kv_heads, d)
        cache.k.at[..., rows, :, :, columns].set(k.astype(cache.k.dtype), mode="drop"),
        cache.v.at[..., rows, :, columns, :].set(v.astype(cache.v.dtype), mode="drop"),
    )


def split_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Return params whose decoder layers are arrays of their own: text_model/layers/0/..., not one stack.

    XLA copies a layer out of a stack, its weights and its cache, before it reads them. Split ones it reads where they
    lie. A program of a few tokens, whose time is that of reading, is faster so, and takes longer to compile. It is an
    arrangement for computing with the decoder, which no file has; every split array is a copy.

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
