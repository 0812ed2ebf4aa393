"""Attention for CPUs that computes the scores of one head and a block of queries at a time, so they stay in cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multipatch_jax.nn.attention.plain import one_head

# Most queries of a block. Their scores against 1024 keys, 2 MB, stay in cache; smaller matmuls would be slower.
MAX_QUERIES = 512


def blocked(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P h d"]:
    """Compute the scores of one head and at most 512 queries at a time, forward and backward."""
    patches, heads, width = q.shape
    blocks = -(-patches // MAX_QUERIES)
    queries = -(-patches // blocks)  # equal blocks: 729 patches are 2 x 365, with less padding than 2 x 512
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
    q = jnp.pad(q, ((0, 0), (0, blocks * queries - patches), (0, 0)))

    # The backward pass computes the scores of a block again, so that those of all blocks are never kept.
    @jax.checkpoint
    def block(index):
        head, row = index // blocks, index % blocks * queries
        rows = jax.lax.dynamic_slice(q, (head, row, 0), (1, queries, width))[0]
        return one_head(rows, k[head], v[head], mask=mask, precision=precision)

    out = jax.lax.map(block, jnp.arange(heads * blocks))
    return out.reshape(heads, blocks * queries, width)[:, :patches].transpose(1, 0, 2)
