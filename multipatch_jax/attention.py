"""Bidirectional multi-head attention of one tile: one function, one implementation per backend."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multipatch_jax.linear import BLOCK

IMPLEMENTATIONS = ("plain", "blocked")
QUERIES = 512  # of a block, at most: 2 MB of scores stay in cache, and fewer rows make slower matmuls


def resolve_implementation(implementation: str, platform: str) -> str:
    """What "auto" means on a platform ("cpu", "gpu", "tpu"); decided before tracing, as it is part of the program."""
    if implementation == "auto":
        return "blocked" if platform == "cpu" else "plain"
    return implementation


def attention(
    q: Float[Array, "P H d"],
    k: Float[Array, "P H d"],
    v: Float[Array, "P H d"],
    *,
    mask: Bool[Array, " P"] | None = None,
    implementation: str = "plain",
    precision: str | None = None,
) -> Float[Array, "P H d"]:
    """softmax(q k^T / sqrt(d)) v over the P patches of one tile, for H heads of width d.

    Args:
      q, k, v: one dtype, which is also the result's.
      mask: True for the patches that may be attended to. Masked keys get no weight; masked queries are still computed,
        as in the reference.
      implementation: static. "plain" makes all (H, P, P) scores at once; "blocked" those of one head and at most 512
        queries at a time, so that they stay in a CPU's cache, forward and backward.
      precision: of the two matmuls, for float32 inputs.

    The softmax is always float32, and the scale is applied to its float32 scores: scaling q would round it once more
    in bfloat16 wherever d is not a power of four (So400m: 72).
    """
    if implementation == "plain":
        heads = jax.vmap(functools.partial(_one_head, mask=mask, precision=precision), in_axes=1, out_axes=1)
        return heads(q, k, v)
    if implementation == "blocked":
        return _blocked(q, k, v, mask, precision)
    raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}.")


def _one_head(
    q: Float[Array, "Q d"],
    k: Float[Array, "K d"],
    v: Float[Array, "K d"],
    *,
    mask: Bool[Array, " K"] | None,
    precision: str | None,
) -> Float[Array, "Q d"]:
    scores = jnp.einsum("qd,kd->qk", q, k, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    # In float32, sums over many keys are made block by block, for the reason given in linear.matmul.
    step = BLOCK if v.dtype == jnp.float32 and precision == "highest" else len(v)
    blocks = (jnp.dot(weights[:, i : i + step], v[i : i + step], precision=precision) for i in range(0, len(v), step))
    return functools.reduce(jnp.add, blocks)


def _blocked(
    q: Float[Array, "P H d"],
    k: Float[Array, "P H d"],
    v: Float[Array, "P H d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P H d"]:
    patches, heads, width = q.shape
    blocks = -(-patches // QUERIES)
    queries = -(-patches // blocks)  # 729 patches are two blocks of 365, not 512 and a padded rest
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
    q = jnp.pad(q, ((0, 0), (0, blocks * queries - patches), (0, 0)))

    @jax.checkpoint  # the backward pass makes the scores of a block again, rather than keep those of all
    def block(index):
        head, row = index // blocks, index % blocks * queries
        rows = jax.lax.dynamic_slice(q, (head, row, 0), (1, queries, width))[0]
        return _one_head(rows, k[head], v[head], mask=mask, precision=precision)

    out = jax.lax.map(block, jnp.arange(heads * blocks))
    return out.reshape(heads, blocks * queries, width)[:, :patches].transpose(1, 0, 2)
