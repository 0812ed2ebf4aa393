"""cuDNN's flash attention, for 16-bit inputs on an NVIDIA GPU (Ampere or later)."""

import jax
from jaxtyping import Array, Bool, Float

from multipatch_jax.nn.attention.plain import plain


def cudnn(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P h d"]:
    """Run cuDNN's kernel, or `plain` where there is a mask: cuDNN's backward pass takes no mask for an odd P."""
    if mask is not None:
        return plain(q, k, v, mask, precision)
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
