"""cuDNN's flash attention, for 16-bit inputs on an NVIDIA GPU (Ampere or later)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def cudnn(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
    patches: int | None = None,
) -> Float[Array, "P h d"]:
    """Run cuDNN's kernel. It takes no mask, because its backward pass takes none for an odd number of patches.

    Args:
      patches: how many patches are real, the first ones; None means all. With a number, P must be even.
    """
    queries, keys = (None, None) if patches is None else (jnp.array([len(q)]), jnp.array([patches]))
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys, implementation="cudnn"
    )
