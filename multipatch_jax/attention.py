"""Bidirectional multi-head attention of one tile: one function, one implementation per backend."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multipatch_jax.linear import BLOCK


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
      implementation: static; "plain" materialises the (H, P, P) scores.
      precision: of the two matmuls, for float32 inputs.

    The softmax is always float32, and the scale is applied to its float32 scores: scaling q would round it once more
    in bfloat16 wherever d is not a power of four (So400m: 72).
    """
    if implementation != "plain":
        raise ValueError(f'implementation must be "plain", got {implementation!r}.')
    scores = jnp.einsum("qhd,khd->hqk", q, k, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    # In float32, sums over many keys are made block by block, for the reason given in linear.matmul.
    step = BLOCK if v.dtype == jnp.float32 and precision == "highest" else len(v)
    blocks = (
        jnp.einsum("hqk,khd->qhd", weights[..., i : i + step], v[i : i + step], precision=precision)
        for i in range(0, len(v), step)
    )
    return functools.reduce(jnp.add, blocks)
