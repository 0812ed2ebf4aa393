"""Attention that holds all scores at once: the form that other kernels are compared with."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multipatch_jax.nn.linear import BLOCK


def plain(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P h d"]:
    """Compute all (h, P, P) scores at once. XLA can split it by heads over a mesh."""
    heads = jax.vmap(functools.partial(one_head, mask=mask, precision=precision), in_axes=1, out_axes=1)
    return heads(q, k, v)


def one_head(
    q: Float[Array, "queries d"],
    k: Float[Array, "keys d"],
    v: Float[Array, "keys d"],
    *,
    mask: Bool[Array, " keys"] | None,
    precision: str | None,
) -> Float[Array, "queries d"]:
    """Return the attention of one head, for some or all of its queries. `blocked` and `pallas_tpu` use it too."""
    scores = jnp.einsum("qd,kd->qk", q, k, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[None], scores, jnp.finfo(jnp.float32).min)
    # The division by the softmax's sum comes after the product with v: d divisions a query rather than one a key.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    # Float32 sums over many keys are computed in blocks, for the reason given at `linear.matmul`.
    step = BLOCK if v.dtype == jnp.float32 and precision == "highest" else len(v)
    dot = functools.partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)
    blocks = (dot(weights[:, i : i + step], v[i : i + step]) for i in range(0, len(v), step))
    return (functools.reduce(jnp.add, blocks) / total).astype(v.dtype)
