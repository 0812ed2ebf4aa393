"""Losses on visual tokens: pure functions of arrays, which compute in float32 whatever the tokens' dtype."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from multipatch_jax.arguments import check_array, is_kind


def distillation_loss(tokens: Float[Array, "N T D"], teacher: Float[Array, "N T D"]) -> Float[Array, ""]:
    """Return the mean squared error between tokens and a teacher's tokens of the same tiles.

    Args:
      tokens: (N, T, D), floating point.
      teacher: the teacher's tokens, of the same shape. No gradient flows into them.

    Raises:
      ValueError: the shapes differ. Broadcasting would silently compare tokens of different tiles.
    """
    check_array("tokens", tokens, ("N", "T", "D"), np.floating)
    if tokens.shape != getattr(teacher, "shape", None):
        raise ValueError(f"The teacher's tokens must have the shape of ours, {tokens.shape}, got {np.shape(teacher)}.")
    error = tokens.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.mean(jnp.square(error))


def pool_tokens(tokens: Float[Array, "*batch tokens D"]) -> Float[Array, "*batch D"]:
    """Return the mean over tokens as a float32 vector: of each tile from (N, T, D), of an image from (N * T, D)."""
    if getattr(tokens, "ndim", 0) < 2 or not is_kind(tokens.dtype, jnp.floating):
        raise ValueError(f"tokens must be floating of shape (..., tokens, D), got {type(tokens).__name__}.")
    return jnp.mean(tokens.astype(jnp.float32), axis=-2)


def sigmoid_contrastive_loss(
    a: Float[Array, "B D"],
    b: Float[Array, "B D"],
    *,
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
    positives: Bool[Array, "B B"] | None = None,
) -> Float[Array, ""]:
    """Return SigLIP's loss: for every pair (row of a, row of b), a binary classification "do they belong together?".

    This is Algorithm 1 of Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training". Rows are normalised to
    length 1, the logits are exp(log_scale) * a b^T + bias, and the sum of the losses of all B * B pairs is divided by
    B. The paper trains log_scale and bias too, from log 10 and -10.

    Args:
      a: (B, D), vectors of one side, such as images.
      b: (B, D), vectors of the other side, such as texts. Row i of `a` and row i of `b` are a pair.
      log_scale: scalar, logarithm of the factor on the logits.
      bias: scalar, added to the logits.
      positives: (B, B) bool, True at [i, j] if row i of `a` and row j of `b` belong together. None is the diagonal.
        Pass it if a batch holds the same text or image twice: the diagonal would count the second match as wrong.

    Raises:
      ValueError: `a` and `b` are not of one shape (B, D), or `positives` is not bool of shape (B, B).
    """
    shapes = [getattr(x, "shape", type(x).__name__) for x in (a, b)]
    if len(shapes[0]) != 2 or isinstance(shapes[0], str) or shapes[0] != shapes[1]:
        raise ValueError(f"Expected two arrays of one shape (B, D), got {shapes[0]} and {shapes[1]}.")
    for name, scalar in (("log_scale", log_scale), ("bias", bias)):
        if not isinstance(scalar, (numbers.Real, np.ndarray, jax.Array)) or np.shape(scalar) != ():
            raise ValueError(f"{name} must be a scalar, got {type(scalar).__name__}.")
    if positives is not None:
        check_array("positives", positives, (len(a), len(a)), np.bool_)
    a, b = (_normalized(x.astype(jnp.float32)) for x in (a, b))
    logits = jnp.exp(log_scale) * jnp.einsum("id,jd->ij", a, b, precision="highest") + bias
    together = jnp.eye(len(a), dtype=bool) if positives is None else positives
    return -jnp.sum(jax.nn.log_sigmoid(jnp.where(together, logits, -logits))) / len(a)


def _normalized(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    # The squared norm is bounded below, not the norm, whose gradient at zero is nan.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))
