"""The dense layer's two forms of 16-bit products."""

import jax
import jax.numpy as jnp
import pytest

from multipatch_jax.nn.linear import Dense


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
