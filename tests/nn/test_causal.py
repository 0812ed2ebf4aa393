"""Causal attention against the formula in float64: any numbers of tokens, heads, columns, padding; its gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.nn import causal
from multipatch_jax.nn.causal import Past, attend
from multipatch_reference import distance
from tests.helpers import tolerances

WIDTH = 8


def formula(q, k, v, columns, real, past):
    """One query and head after another, over the keys that it sees, in float64."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for row, token, head in np.ndindex(q.shape[:3]):
        seen = (columns[row] <= columns[row, token]) & real[row]
        keys, values = k[row, seen, head // group], v[row, seen, head // group]
        if past is not None:
            seen = past.real[row] & (np.arange(past.real.shape[1]) <= columns[row, token])
            keys = np.concatenate([keys, past.k[row, head // group].T[seen]])
            values = np.concatenate([values, past.v[row, head // group][seen]])
        weights = np.exp(keys.astype(np.float64) @ q[row, token, head] * WIDTH**-0.5)
        out[row, token, head] = weights @ values / weights.sum()
    return out


def operands(chance, batch, tokens, kv_heads, group, capacity=0) -> Any:
    def normal(*shape):
        return chance.normal(size=shape).astype(np.float32)

    q = normal(batch, tokens, kv_heads * group, WIDTH)
    k, v = normal(batch, tokens, kv_heads, WIDTH), normal(batch, tokens, kv_heads, WIDTH)
    start = chance.integers(0, capacity + 1, (batch, 1))
    columns = (start + np.arange(tokens)).astype(np.int32)
    if not capacity:
        return q, k, v, columns, None
    earlier = np.arange(capacity) < start
    past = Past(normal(batch, kv_heads, WIDTH, capacity), normal(batch, kv_heads, capacity, WIDTH), earlier)
    return q, k, v, columns, past


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.sampled_from([1, 2, 7, 300]),
    heads=st.sampled_from([(1, 1), (1, 3), (3, 1), (2, 2)]),
    capacity=st.sampled_from([0, 1, 40, 300]),
)
def test_the_result_is_the_formulas(seed, tokens, heads, capacity):
    chance = np.random.default_rng(seed)
    kv_heads, group = heads
    q, k, v, columns, past = operands(chance, 2, tokens, kv_heads, group, capacity)
    real = chance.random((2, tokens)) < 0.8
    real |= np.arange(tokens) == 0  # so that every token sees one
    out = jax.jit(functools.partial(attend, precision="highest"))(q, k, v, columns, real, past)
    expected = formula(q, k, v, columns, real, past)
    assert distance(out, expected) <= tolerances.SAME_PROGRAM


@pytest.mark.parametrize("tokens", [20, 23])
@pytest.mark.parametrize("capacity", [0, 40])
def test_blocks_of_queries_change_neither_result_nor_gradient(capacity, tokens, monkeypatch):
    q, k, v, columns, past = operands(np.random.default_rng(0), 2, tokens, 2, 2, capacity)

    def run():
        function = functools.partial(attend, columns=columns, real=None, past=past, precision="highest")
        return jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(function(q, k, v) ** 3), argnums=(0, 1, 2)))(q, k, v)

    whole = run()
    monkeypatch.setattr(causal, "MAX_QUERIES", 8)
    for mine, theirs in zip(jax.tree.leaves(run()), jax.tree.leaves(whole), strict=True):
        assert distance(mine, theirs) <= tolerances.SAME_PROGRAM


def test_a_row_without_a_real_token_is_finite_and_so_is_its_gradient():
    q, k, v, columns, _ = operands(np.random.default_rng(0), 2, 5, 1, 2)
    real: Any = np.array([[False] * 5, [True] * 5])

    def total(q, k, v):
        return attend(q, k, v, columns, real, None, "highest")[1].sum()

    assert jnp.isfinite(attend(q, k, v, columns, real, None, "highest")).all()
    assert all(jnp.isfinite(gradient).all() for gradient in jax.grad(total, argnums=(0, 1, 2))(q, k, v))
