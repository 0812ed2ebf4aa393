"""The dense layer's two forms of 16-bit products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipatch_jax.nn.linear import FEW_ROWS, Dense, matmul
from multipatch_reference import distance


@pytest.mark.parametrize("product_in_dtype", [False, True])
def test_a_product_in_its_own_dtype_is_a_rounding_more_and_half_the_bytes(product_in_dtype):
    """The form that 16-bit dtypes take on CUDA; its numbers are the same on any machine."""
    shapes = {"x": (64, 300), "kernel": (300, 40), "bias": (40,)}
    x, kernel, bias = (jax.random.normal(jax.random.key(i), s, jnp.bfloat16) for i, s in enumerate(shapes.values()))
    exact = x.astype(jnp.float32) @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)
    dense = Dense(40, dtype="bfloat16", precision="default", product_in_dtype=product_in_dtype)
    params = {"params": {"kernel": kernel, "bias": bias}}
    found = jnp.asarray(dense.apply(params, x))
    assert found.dtype == jnp.bfloat16
    # Half a unit in the last place at most for each of one or two roundings.
    assert jnp.linalg.norm(found.astype(jnp.float32) - exact) <= (1 + product_in_dtype) * 2**-9 * jnp.linalg.norm(exact)
    assert ("f32[64,40]" in str(jax.make_jaxpr(dense.apply)(params, x))) != product_in_dtype


@pytest.mark.parametrize("terms", [257, 576, 2048, 8192])
@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
def test_float32_sums_of_many_terms_are_made_in_blocks_for_any_number_of_rows(rows, terms):
    """One accumulator for 8192 terms would be 1.7e-6 from float64 for one row; blocks are 3e-7 whatever the number."""
    chance = np.random.default_rng(0)
    x, w = (chance.normal(size=shape).astype(np.float32) for shape in ((rows, terms), (terms, 40)))
    found = jax.jit(matmul, static_argnums=2)(x, w, "highest")
    assert found.shape == (rows, 40)
    assert distance(found, x.astype(np.float64) @ w.astype(np.float64)) <= 4e-7
