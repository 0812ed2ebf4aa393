"""Attention for CPUs: the scores of one head and a block of queries at a time, so that they stay in cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multipatch_jax.nn.attention.plain import one_head

MAX_QUERIES = 512  # of a block: their scores, 2 MB, stay in cache; fewer rows would make slower matmuls


def blocked(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P h d"]:
    """The scores of one head and at most 512 queries at a time, forward and backward."""
    patches, heads, width = q.shape
    blocks = -(-patches // MAX_QUERIES)
    queries = -(-patches // blocks)  # 729 patches are two blocks of 365, not one of 512 and a padded one
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
    q = jnp.pad(q, ((0, 0), (0, blocks * queries - patches), (0, 0)))

    @jax.checkpoint  # the backward pass computes the scores of a block again, rather than keep those of all blocks
    def block(index):
        head, row = index // blocks, index % blocks * queries
        rows = jax.lax.dynamic_slice(q, (head, row, 0), (1, queries, width))[0]
        return one_head(rows, k[head], v[head], mask=mask, precision=precision)

    out = jax.lax.map(block, jnp.arange(heads * blocks))
    return out.reshape(heads, blocks * queries, width)[:, :patches].transpose(1, 0, 2)
