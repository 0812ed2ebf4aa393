"""Causal attention over the tokens of a call and earlier ones in a cache, with fewer key heads than query heads."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from multipatch_jax.nn.linear import BLOCK

# Most queries of a block. The scores of all queries at once would be 2.4 GB a row for 8192 tokens and 9 heads.
MAX_QUERIES = 512


class Past(NamedTuple):
    """Keys and values of earlier tokens, in the layout of one layer of `KVCache`, and which columns hold such."""

    k: Float[Array, "B kv_heads d C"]
    v: Float[Array, "B kv_heads C d"]
    real: Bool[Array, "B C"]


def attend(
    q: Float[Array, "B S h d"],
    k: Float[Array, "B S kv_heads d"],
    v: Float[Array, "B S kv_heads d"],
    columns: Int[Array, "B S"],
    real: Bool[Array, "B S"] | None,
    past: Past | None,
    precision: str | None,
) -> Float[Array, "B S h d"]:
    """Return softmax(q k^T / sqrt(d)) v, computed in float32, over the tokens that each token sees.

    A token sees itself and all tokens, of this call and of `past`, in columns before its own. Query head i reads key
    head i // (h // kv_heads); no head is repeated in memory.

    Args:
      q, k, v: of the tokens of this call; of one dtype, which is also the result's.
      columns: the column of each token; column i of `past` is column i.
      real: False for padding, which no token sees and whose own result is meaningless, but finite. None if there is
        none.
      past: earlier tokens. What its unreal columns hold must be finite.
      precision: of the products, for float32 inputs.
    """
    batch, queries, heads, width = q.shape
    keys = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), columns, real
    block = functools.partial(_block, keys=keys, past=past, precision=precision)
    blocks = -(-queries // MAX_QUERIES)
    if blocks == 1:
        return block((q, columns))
    size = -(-queries // blocks)
    padding = blocks * size - queries
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0))).reshape(batch, blocks, size, heads, width)
    last = jnp.pad(columns, ((0, 0), (0, padding))).reshape(batch, blocks, size)
    # The backward pass computes the scores of a block again, so that those of all blocks are never kept.
    out = jax.lax.map(jax.checkpoint(block), (jnp.moveaxis(q, 1, 0), jnp.moveaxis(last, 1, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(batch, blocks * size, heads, width)[:, :queries]


Keys = tuple[
    Float[Array, "B kv_heads d S"], Float[Array, "B kv_heads S d"], Int[Array, "B S"], Bool[Array, "B S"] | None
]  # k and v in the layout of `Past`, columns, real


def _block(
    operands: tuple[Float[Array, "B Q h d"], Int[Array, "B Q"]], *, keys: Keys, past: Past | None, precision: str | None
) -> Float[Array, "B Q h d"]:
    """Return the attention of some queries, which come with their columns."""
    (q, last), (k, v, columns, real) = operands, keys
    (batch, queries, heads, width), kv_heads = q.shape, k.shape[1]
    group = heads // kv_heads
    # Rows of one key head's products: all queries of each of its query heads.
    rows = q.reshape(batch, queries, kv_heads, group, width).transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, kv_heads, group * queries, width)
    seen = columns[:, None] <= last[..., None]
    parts = [(k, v, seen if real is None else seen & real[:, None])]
    if past is not None:
        before = jnp.arange(past.real.shape[1], dtype=last.dtype)[None, None] <= last[..., None]
        parts.append((past.k, past.v, before & past.real[:, None]))
    scores = [_scores(rows, k, seen, precision) for k, _, seen in parts]
    most = functools.reduce(jnp.maximum, [part.max(axis=-1, keepdims=True) for part in scores])
    weights = [jnp.exp(part - jax.lax.stop_gradient(most)) for part in scores]
    # The division by the softmax's sum comes after the product with v: d divisions a query rather than one a column.
    total = functools.reduce(jnp.add, [part.sum(axis=-1, keepdims=True) for part in weights])
    sums = [_weighted_sum(part, v, precision) for part, (_, v, _) in zip(weights, parts, strict=True)]
    out = (functools.reduce(jnp.add, sums) / total).astype(q.dtype)
    return out.reshape(batch, kv_heads, group, queries, width).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _scores(
    rows: Float[Array, "B kv_heads rows d"],
    k: Float[Array, "B kv_heads d C"],
    seen: Bool[Array, "B Q C"],
    precision: str | None,
) -> Float32[Array, "B kv_heads rows C"]:
    """Return the scores of queries; the least number where unseen."""
    scores = jnp.einsum("bkrd,bkdc->bkrc", rows, k, precision=precision, preferred_element_type=jnp.float32)
    of_heads = scores.reshape(*scores.shape[:2], -1, *seen.shape[1:]) * rows.shape[-1] ** -0.5
    return jnp.where(seen[:, None, None], of_heads, jnp.finfo(jnp.float32).min).reshape(scores.shape)


def _weighted_sum(
    weights: Float32[Array, "B kv_heads rows C"], v: Float[Array, "B kv_heads C d"], precision: str | None
) -> Float32[Array, "B kv_heads rows d"]:
    """Return the product of weights and values, in float32.

    Float32 sums over many columns are computed in blocks, for the reason given at `linear.matmul`.
    """
    *axes, columns = weights.shape
    size = BLOCK if v.dtype == jnp.float32 and precision == "highest" and columns > BLOCK else columns
    padding = -columns % size
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, 0), (0, padding))).astype(v.dtype).reshape(*axes, -1, size)
    v = jnp.pad(v, ((0, 0), (0, 0), (0, padding), (0, 0))).reshape(*axes[:2], -1, size, v.shape[-1])
    dot = jnp.einsum("bkrnc,bkncd->bknrd", weights, v, precision=precision, preferred_element_type=jnp.float32)
    return dot.sum(axis=2)
