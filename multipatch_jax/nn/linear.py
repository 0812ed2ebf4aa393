"""A matrix product whose float32 sums are as exact as the reference's, and the dense layer that uses it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

BLOCK = 256  # terms of one block of a sum, see `matmul`
FEW_ROWS = 32  # above it, the loop over blocks is faster than the batched product


def matmul(
    x: Float[Array, "rows in"], w: Float[Array, "in out"], precision: str | None = None
) -> Float[Array, "rows out"]:
    """Return x @ w, accumulated and returned in float32 whatever the dtype of the inputs.

    With float32 inputs and precision "highest", a sum of more than BLOCK terms is computed in blocks of BLOCK terms,
    whose sums are then added up. XLA on a CPU would use one accumulator for all terms, and its error grows with the
    square root of their number. On a CPU without AVX-512 a whole tower is then 2.2 to 2.4 times as far from float64 as
    the reference, whose library sums in blocks too. Blocks of 256 bring that to 1.1 times
    (`python -m benchmarks.float32`).
    """
    k = x.shape[1]
    if x.dtype != jnp.float32 or precision != "highest" or k <= BLOCK:
        dot = functools.partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)
        if len(x) > 1:
            return dot(x, w)
        # For one row, XLA on CUDA would write all products to memory and read them to add them up: 4 times the bytes.
        return jax.lax.platform_dependent(x, w, cuda=lambda x, w: dot(jnp.repeat(x, 2, axis=0), w)[:1], default=dot)
    if len(x) <= FEW_ROWS:
        # All blocks in one batched product. The loop below copies every block of w before it reads it, which costs more
        # than the product itself where rows are few: 10 times as long for one row.
        number = next(number for number in range(-(-k // BLOCK), k + 1) if k % number == 0)
        x, w = x.reshape(len(x), number, -1), w.reshape(number, k // number, -1)
        return jnp.einsum("rbk,bko->bro", x, w, precision=precision).sum(axis=0)

    def add_block(i, total):
        columns = jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=1)
        rows = jax.lax.dynamic_slice_in_dim(w, i * BLOCK, BLOCK, axis=0)
        return total + jnp.dot(columns, rows, precision=precision)

    done = k // BLOCK * BLOCK
    rest = jnp.dot(x[:, done:], w[done:], precision=precision)  # zeros when nothing is left
    # Unrolling brings the tower, on a CPU without the compiled encoder, to 0.87 x the time.
    return jax.lax.fori_loop(0, k // BLOCK, add_block, rest, unroll=4)


class Dense(nn.Module):
    """`flax.linen.Dense` for inputs of shape (rows, in): the same parameters, but the product is that of `matmul`.

    Attributes:
      features: width of the output.
      use_bias: whether a bias is added.
      dtype: of the inputs of the product and of the result; None is the dtype of the kernel.
      precision: as in `matmul`.
      product_in_dtype: whether the product is rounded to `dtype` before the bias is added.
        False: a float32 bias is added to a float32 product, and the sum is rounded once. On CUDA the float32 product
        is written to memory and read back for that.
        True: where XLA gives products to cuBLAS (`Kernel.compiler_options`), product, bias, and a GELU or a residual
        that follows become one call, which computes them in float32 and rounds once.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    precision: str | None = None
    product_in_dtype: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "rows in"]) -> Float[Array, "rows out"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features), jnp.float32)
        dtype = self.dtype or kernel.dtype
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        y = jnp.dot(x, kernel) if self.product_in_dtype else matmul(x, kernel, self.precision)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias.astype(y.dtype)[None]
        return y.astype(dtype)
