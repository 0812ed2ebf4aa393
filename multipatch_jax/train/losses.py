"""Losses on visual tokens: pure functions of arrays, in float32 whatever the tokens' dtype."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def distillation_loss(tokens: Float[Array, "N T D"], teacher: Float[Array, "N T D"]) -> Float[Array, ""]:
    """Mean squared error to the tokens that a teacher gives for the same tiles.

    Args:
      tokens, teacher: of one shape. No gradient goes to the teacher.

    Raises:
      ValueError: the shapes differ; broadcasting would train to nonsense without a word.
    """
    if tokens.shape != teacher.shape:
        raise ValueError(f"The teacher's tokens must have the shape of ours, {tokens.shape}, got {teacher.shape}.")
    error = tokens.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.mean(jnp.square(error))


def pool_tokens(tokens: Float[Array, "*B T D"]) -> Float[Array, "*B D"]:
    """The mean of the T tokens: one float32 vector for a tile, or for an image when T runs over all of its tiles."""
    return jnp.mean(tokens.astype(jnp.float32), axis=-2)


def sigmoid_contrastive_loss(
    a: Float[Array, "B D"],
    b: Float[Array, "B D"],
    *,
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    positives: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """SigLIP's loss: every pair of rows is a yes-or-no question, "do these two belong together?".

    Algorithm 1 of Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training": rows are normalised, logits are
    exp(log_scale) * a b^T + bias, and the sum over all pairs is divided by B. The paper starts with log_scale = log 10
    and bias = -10, both trained.

    Args:
      a, b: vectors of the two sides, a pair a row.
      positives: True where row i of `a` and row j of `b` belong together; None is the diagonal. Give it where a batch
        holds an equal text twice, which would otherwise count as a wrong answer.

    Raises:
      ValueError: `a` and `b` are not of one shape (B, D), or `positives` not bool of shape (B, B).
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"Expected two arrays of one shape (B, D), got {a.shape} and {b.shape}.")
    if positives is not None and (positives.shape != (len(a), len(a)) or positives.dtype != bool):
        raise ValueError(
            f"positives must be bool of shape {(len(a), len(a))}, got {positives.dtype} of shape {positives.shape}."
        )
    a, b = (_normalized(x.astype(jnp.float32)) for x in (a, b))
    logits = jnp.exp(log_scale) * jnp.einsum("id,jd->ij", a, b, precision="highest") + bias
    together = jnp.eye(len(a), dtype=bool) if positives is None else positives
    return -jnp.sum(jax.nn.log_sigmoid(jnp.where(together, logits, -logits))) / len(a)


def _normalized(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    # The limit is under the root: the gradient of a norm is nan at zero.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))
