"""The decoder with a cache: equal to the pass without one, row by row, and in place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from multipatch_jax.nn import KVCache, LlamaModel, init_cache, split_layers
from multipatch_jax.nn.kv_cache import write_cache, write_one_by_one
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.models import TINY, TINY_TEXT, random_params

TEXT = dataclasses.replace(TINY_TEXT, num_attention_heads=4, num_key_value_heads=2)
CONFIG = dataclasses.replace(TINY, text=TEXT)
PARAMS = random_params(CONFIG)
SPLIT = split_layers(PARAMS)["text_model"]
CAPACITY = 24
MODEL = LlamaModel(TEXT, mp.nn.resolve_compute(mp.Compute(), "float32"))


@functools.partial(jax.jit, donate_argnames="cache")
def advance(params, x, position_ids, mask, cache):
    return MODEL.apply({"params": params}, x, position_ids, mask, cache)


def embeds(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, (*shape, TEXT.hidden_size)).astype(np.float32)


def positions(*starts, length):
    return (np.array(starts)[:, None] + np.arange(length)).astype(np.int32)


def filled(batch, value=0.0):
    cache = init_cache(TEXT, batch, CAPACITY, jnp.float32)
    return jax.tree.map(lambda x: jnp.full_like(x, value), cache)


@settings(deadline=None, max_examples=8)
@given(chunks=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_chunks_with_a_cache_equal_the_whole_text_without(chunks):
    x = embeds(2, sum(chunks[:3]) + 2)[:, : sum(chunks)]
    whole, none = MODEL.apply({"params": PARAMS["text_model"]}, x, positions(0, 0, length=x.shape[1]))
    assert none is None
    cache, parts, start = filled(2), [], 0
    for length in chunks:
        part = x[:, start : start + length]
        if part.shape[1]:
            hidden, cache = advance(SPLIT, part, positions(start, start, length=part.shape[1]), None, cache)
            parts.append(hidden)
        start += length
    assert distance(jnp.concatenate(parts, axis=1), whole) <= tolerances.SAME_PROGRAM


def test_each_row_of_a_ragged_batch_equals_itself_alone():
    """In the same program, in every bit: prompts of 8 lengths, then 3 tokens at 8 different positions."""
    lengths = np.array([1, 2, 3, 5, 8, 10, 11, 12])
    prompts, later = embeds(8, 12), embeds(8, 3, seed=1)

    def run(rows):
        """Whether each row is run; the other rows ride along outside the capacity."""
        off, cache = np.where(rows, 0, CAPACITY), filled(8)
        mask = np.arange(12) < lengths[:, None]
        hidden, cache = advance(SPLIT, prompts, positions(*off, length=12), mask, cache)
        results = [np.where(mask[..., None], hidden, 0)]
        for step in range(3):
            where = np.where(rows, lengths + step, CAPACITY)[:, None].astype(np.int32)
            hidden, cache = advance(SPLIT, later[:, step : step + 1], where, None, cache)
            results.append(hidden)
        return np.concatenate(results, axis=1)

    together = run(np.ones(8, bool))
    for row in range(8):
        np.testing.assert_array_equal(run(np.arange(8) == row)[row], together[row])


def test_what_lies_behind_a_row_is_never_seen():
    x = embeds(2, 5)
    expected, _ = advance(SPLIT, x, positions(0, 0, length=5), None, filled(2))
    found, cache = advance(SPLIT, x, positions(0, 0, length=5), None, filled(2, 1e4))
    np.testing.assert_array_equal(found, expected)
    one, _ = advance(SPLIT, embeds(2, 1, seed=1), positions(5, 5, length=1), None, cache)
    assert jnp.isfinite(one).all()
    assert distance(one, expected[:, :1]) > 1e-2
    assert jnp.abs(one).max() < 100


@pytest.mark.parametrize(
    ("mask", "start"), [(None, CAPACITY), (None, CAPACITY - 1), (np.array([[False, False, True]] * 2), 0)]
)
def test_padding_and_places_outside_the_capacity_are_dropped(mask, start):
    where = positions(start, start, length=3)
    _, cache = advance(SPLIT, embeds(2, 3), where, mask, filled(2, 7.0))
    columns = np.zeros(CAPACITY, bool)
    columns[where[0][(where[0] < CAPACITY) & (True if mask is None else mask[0])]] = True
    for leaf in jax.tree.leaves(cache):
        last = np.asarray(leaf) if leaf.shape[-1] == CAPACITY else np.moveaxis(leaf, -2, -1)
        np.testing.assert_array_equal((last != 7).reshape(-1, CAPACITY).any(axis=0), columns)


def test_a_token_that_is_not_finite_is_not_written():
    x = embeds(2, 4)
    x[0, 1] = np.nan
    hidden, cache = advance(SPLIT, x, positions(0, 0, length=4), None, filled(2))
    assert np.isnan(hidden[0, 1:]).all()
    assert jnp.isfinite(hidden[1]).all()
    assert all(jnp.isfinite(array).all() for array in jax.tree.leaves(cache))
    good, _ = advance(SPLIT, embeds(2, 4), positions(0, 0, length=4), None, cache)
    assert jnp.isfinite(good).all()


def test_left_padding_with_a_cache_changes_nothing():
    x = embeds(2, 6)
    expected, _ = advance(SPLIT, x, positions(0, 0, length=6), None, filled(2))
    mask = np.arange(9) >= 3
    padded = np.concatenate([embeds(2, 3, seed=5), x], axis=1)
    where = np.broadcast_to(np.maximum(np.arange(9) - 3, 0), (2, 9)).astype(np.int32)
    found, cache = advance(SPLIT, padded, where, np.broadcast_to(mask, (2, 9)), filled(2))
    assert distance(found[:, 3:], expected) <= tolerances.SAME_PROGRAM
    step = [embeds(2, 1, seed=6), positions(6, 6, length=1), None]
    after, _ = advance(SPLIT, *step, cache)
    _, plain = advance(SPLIT, x, positions(0, 0, length=6), None, filled(2))
    assert distance(after, advance(SPLIT, *step, plain)[0]) <= tolerances.SAME_PROGRAM


def test_the_cache_is_updated_in_place():
    """In float32. A CPU computes bfloat16 products in float32, and XLA makes that copy of all arrays, the cache too."""
    text = dataclasses.replace(TEXT, num_hidden_layers=12)
    params = random_params(dataclasses.replace(CONFIG, text=text))
    params = split_layers(params)["text_model"]
    cache = init_cache(text, 2, 8192, jnp.float32)
    size = sum(x.nbytes for x in jax.tree.leaves(cache))
    model = LlamaModel(text)
    step = jax.jit(lambda *args: model.apply({"params": args[0]}, *args[1:]), donate_argnums=4)
    x, where = embeds(2, 1), positions(5, 9, length=1)
    memory = step.lower(params, x, where, None, cache).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == size
    assert memory.temp_size_in_bytes < 0.05 * size  # the scores of a layer are a twelfth of its cache here
    _, after = step(params, x, where, None, cache)
    assert jax.tree.structure(after) == jax.tree.structure(cache)
    assert all(array.is_deleted() for array in jax.tree.leaves(cache))


def test_a_cache_with_stacked_layers_is_refused():
    with pytest.raises(ValueError, match=r"params must be those of split_layers.*got stacked layers"):
        MODEL.apply({"params": PARAMS["text_model"]}, embeds(1, 1), positions(0, length=1), None, filled(1))


@settings(deadline=None, max_examples=30)
@given(columns=st.lists(st.integers(0, CAPACITY + 3), min_size=1, max_size=5))
def test_a_tpus_form_writes_the_same(columns):
    """A token of each row, some outside the capacity; the form for a TPU is plain JAX, and runs anywhere."""
    cache = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), filled(len(columns))[0])
    shape = (len(columns), 1, TEXT.num_key_value_heads, TEXT.head_dim)
    new = KVCache(*(jax.random.normal(jax.random.key(seed), shape) for seed in (1, 2)))
    where = jnp.array(columns, jnp.int32)[:, None]
    expected, found = write_cache(cache, where, *new), write_one_by_one(cache, where, new)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    written = np.asarray((found.k != cache.k).any(axis=(1, 2)))
    np.testing.assert_array_equal(written, np.arange(CAPACITY) == where)


def test_splitting_keeps_every_number():
    layers = SPLIT["layers"]
    assert list(layers) == [str(index) for index in range(TEXT.num_hidden_layers)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers.values())
    jax.tree.map(np.testing.assert_array_equal, stacked, PARAMS["text_model"]["layers"])
