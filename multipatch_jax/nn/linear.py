"""Matrix products whose float32 sums are as exact as the reference's, and the dense layer made of them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

BLOCK = 256  # terms summed in one go


def matmul(x: Float[Array, "M K"], w: Float[Array, "K N"], precision: str | None = None) -> Float[Array, "M N"]:
    """x @ w, summed and returned in float32 whatever the inputs.

    With float32 inputs at precision "highest", sums of more than BLOCK terms are made block by block: one accumulator
    over K terms, which is what XLA gives on a CPU, drifts with sqrt(K). Over a whole tower that is 2.2 to 2.4 times the
    distance from float64 of the reference, whose library blocks K; blocks of 256 bring it to 1.1
    (`python -m benchmarks.float32`).
    """
    k = x.shape[1]
    if x.dtype != jnp.float32 or precision != "highest" or k <= BLOCK:
        return jnp.dot(x, w, precision=precision, preferred_element_type=jnp.float32)

    def add_block(i, total):
        columns = jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=1)
        rows = jax.lax.dynamic_slice_in_dim(w, i * BLOCK, BLOCK, axis=0)
        return total + jnp.dot(columns, rows, precision=precision)

    done = k // BLOCK * BLOCK
    rest = jnp.dot(x[:, done:], w[done:], precision=precision)  # zeros when nothing is left
    # Unrolled, a tower on a CPU without the compiled encoder takes 0.87 x the time.
    return jax.lax.fori_loop(0, k // BLOCK, add_block, rest, unroll=4)


class Dense(nn.Module):
    """`flax.linen.Dense` for (M, K) inputs, with the same parameters, on `matmul`.

    Attributes:
      product_in_dtype: whether the product is rounded to `dtype` before the bias is added. False adds a float32 bias to
        a float32 product and rounds once; on CUDA such a product is written to memory and read again. With True and
        `--xla_gpu_enable_triton_gemm=false` in XLA_FLAGS, product, bias and a GELU that follows are one call of
        cuBLAS, which computes them in float32 and rounds once.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    precision: str | None = None
    product_in_dtype: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "M K"]) -> Float[Array, "M N"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = jnp.dot(x, kernel) if self.product_in_dtype else matmul(x, kernel, self.precision)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + (bias.astype(self.dtype) if self.product_in_dtype else bias)
        return y.astype(self.dtype)
