"""The decoder in compiled code: a step and a chunk of every build, against the decoder in JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.nn import (
    KVCache,
    LlamaModel,
    decoder_prefill,
    decoder_step,
    init_packed_cache,
    logits,
    native,
    pack_decoder,
)
from multipatch_jax.nn.kv_cache import split_layers
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.compiled import compiled_code
from tests.helpers.models import TINY_SMOLVLM

pytestmark = compiled_code
ROWS, CAPACITY = 6, 512
# heads, key heads, head width, width, hidden, vocabulary, tied: odd sizes, panels that are not full, a key head a head.
ODD, TIED, WIDE = SHAPES = [
    (3, 1, 32, 96, 201, 131, False),
    (4, 2, 16, 65, 96, 77, True),
    (5, 5, 64, 320, 448, 999, False),
]
POSITIONS = np.array([0, 1, 300, 511, 512, 77], np.int32)  # row 4 holds no token
# tokens, start, last
CHUNKS = [
    (ODD, (1, 0, 0)),
    (TIED, (32, 0, 20)),
    (WIDE, (256, 0, 255)),
    (ODD, (256, 0, 254)),
    (TIED, (64, 300, 63)),
    (WIDE, (64, 480, 31)),
]


def make(shape, dtype):
    """(config of the language model, params, cache with random numbers)."""
    heads, kv_heads, head_dim, width, hidden, vocabulary, tied = shape
    assert TINY_SMOLVLM.text is not None
    text = dataclasses.replace(
        TINY_SMOLVLM.text,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=width,
        intermediate_size=hidden,
        vocab_size=vocabulary,
        num_hidden_layers=3,
        tie_word_embeddings=tied,
        pad_token_id=None,
    )
    connector = dataclasses.replace(TINY_SMOLVLM.connector, text_hidden_size=width)
    config = dataclasses.replace(TINY_SMOLVLM, text=text, connector=connector)
    params = cast(mp.init_params(jax.random.key(0), config, parts="text"), dtype)
    empty = init_packed_cache(text, ROWS, CAPACITY, dtype)
    keys = jax.random.split(jax.random.key(1))
    cache = (jax.random.normal(key, x.shape).astype(dtype) for key, x in zip(keys, empty, strict=True))
    return text, params, KVCache(*cache)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def numbers_of(cache):
    return jnp.concatenate([x.ravel() for x in cast(cache, jnp.float32)])


def split(cache):
    """The layers of a cache, as the decoder in JAX has them."""
    return tuple(KVCache(k, v) for k, v in zip(*cache, strict=True))


def joined(layers):
    return KVCache(*map(jnp.stack, zip(*layers, strict=True)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def step_in_jax(text, dtype, params, cache, x):
    compute = mp.nn.resolve_compute(mp.Compute(), dtype)
    of_text = split_layers(params)["text_model"]
    layers = {name: value for name, value in of_text.items() if name != "embed_tokens"}
    model = LlamaModel(text, compute)
    hidden, new = model.apply({"params": layers}, x[:, None], POSITIONS[:, None], cache=split(cache))
    return logits(params, hidden[:, 0], text, compute), joined(new)


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6))
def chunk_in_jax(text, dtype, params, cache, x, row, start):
    compute = mp.nn.resolve_compute(mp.Compute(), dtype)
    of_text = split_layers(params)["text_model"]
    layers = {name: value for name, value in of_text.items() if name != "embed_tokens"}
    own = split(KVCache(*(array[:, row : row + 1] for array in cache)))
    positions = (start + jnp.arange(len(x)))[None]
    hidden, own = LlamaModel(text, compute).apply({"params": layers}, x[None], positions, cache=own)
    cache = KVCache(*(whole.at[:, row].set(part[:, 0]) for whole, part in zip(cache, joined(own), strict=True)))
    return logits(params, hidden[0, -1:], text, compute), cache


def is_close(found, expected, truth, dtype):
    """Float32: the same numbers but for the order of sums. bfloat16: at most as far from float32 as XLA's."""
    if dtype == "float32":
        return distance(found, expected) <= tolerances.SAME_PROGRAM
    return distance(found, truth) <= distance(expected, truth)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_that_of_the_decoder_in_jax(shape, dtype):
    text, params, cache = make(shape, dtype)
    x = jax.random.normal(jax.random.key(2), (ROWS, text.hidden_size)).astype(dtype)
    expected, expected_cache = step_in_jax(text, dtype, params, cache, x)
    truth, truth_cache = step_in_jax(text, "float32", *cast((params, cache, x), jnp.float32))
    real = POSITIONS < CAPACITY
    for build in native.builds():
        packed = pack_decoder(params, text, dtype, build)
        found, found_cache = decoder_step(packed, x, POSITIONS, cache, text, build)
        assert is_close(found[real], expected[real], truth[real], dtype), build
        assert not found[~real].any(), build
        ours, theirs, true = map(numbers_of, (found_cache, expected_cache, truth_cache))
        assert is_close(ours, theirs, true, dtype), build
        for after, before in zip(found_cache, cache, strict=True):
            np.testing.assert_array_equal(after[:, 4], before[:, 4], err_msg=build)  # the row without a token


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "chunk"), CHUNKS, ids=str)
def test_a_chunk_is_that_of_the_decoder_in_jax(shape, chunk, dtype):
    (tokens, start, last), row = chunk, 1
    text, params, cache = make(shape, dtype)
    x = jax.random.normal(jax.random.key(2), (tokens, text.hidden_size)).astype(dtype)
    real = x[: last + 1]
    expected, expected_cache = chunk_in_jax(text, dtype, params, cache, real, row, start)
    truth, truth_cache = chunk_in_jax(text, "float32", *cast((params, cache, real), jnp.float32), row, start)
    for build in native.builds():
        packed = pack_decoder(params, text, dtype, build)
        found, found_cache = decoder_prefill(packed, x, row, start, last, cache, text, build)
        assert is_close(found, expected, truth, dtype), build
        ours, theirs, true = map(numbers_of, (found_cache, expected_cache, truth_cache))
        assert is_close(ours, theirs, true, dtype), build
        for after, before in zip(found_cache, cache, strict=True):
            np.testing.assert_array_equal(np.delete(after, row, 1), np.delete(before, row, 1), err_msg=build)


def test_a_cache_of_bfloat16_beside_float32_weights():
    """Every build finds, but for the order of sums, what the decoder in JAX does with such a cache."""
    text, params, cache = make(WIDE, "float32")
    cache = cast(cache, "bfloat16")
    x = jax.random.normal(jax.random.key(2), (ROWS, text.hidden_size))
    expected, expected_cache = step_in_jax(text, "float32", params, cache, x)
    real = POSITIONS < CAPACITY
    for build in native.builds():
        packed = pack_decoder(params, text, "float32", build)
        found, found_cache = decoder_step(packed, x, POSITIONS, cache, text, build)
        # Both round the new keys and values, now and then to the other side.
        assert distance(found[real], expected[real]) <= 2**-9, build
        assert distance(numbers_of(found_cache), numbers_of(expected_cache)) <= 2**-9, build
        one, _ = decoder_prefill(packed, x[:1], 0, 0, 0, cache, text, build)
        assert distance(one, found[:1]) <= 2**-9, build  # row 0 holds its first token


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_those_beside_it(dtype):
    text, params, cache = make(SHAPES[0], dtype)
    x = jax.random.normal(jax.random.key(2), (ROWS, text.hidden_size)).astype(dtype)
    packed = pack_decoder(params, text, dtype)
    step = jax.jit(lambda x, positions, cache: decoder_step(packed, x, positions, cache, text))
    together, _ = step(x, POSITIONS, cache)
    for row in (0, 2, 5):
        alone, _ = step(x, np.where(np.arange(ROWS) == row, POSITIONS, CAPACITY), cache)
        np.testing.assert_array_equal(alone[row], together[row])


def test_the_cache_is_updated_in_place():
    text, params, cache = make(SHAPES[0], "float32")
    packed = pack_decoder(params, text, "float32")
    x = jnp.ones((ROWS, text.hidden_size))
    step = jax.jit(lambda cache, x: decoder_step(packed, x, POSITIONS, cache, text), donate_argnums=0)
    compiled = step.lower(cache, x).compile()
    cached = sum(array.nbytes for array in cache)
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == cached
    assert memory.temp_size_in_bytes < cached / 4  # no copy of it


def test_nan_comes_out_and_stays_out_of_the_cache():
    text, params, cache = make(ODD, "float32")
    packed = pack_decoder(params, text, "float32")
    x = jnp.ones((ROWS, text.hidden_size)).at[2, 3].set(jnp.nan)
    found, after = decoder_step(packed, x, POSITIONS, cache, text)
    assert jnp.isnan(found[2]).all()
    assert jnp.isfinite(jnp.delete(found, 2, axis=0)).all()
    assert all(jnp.isfinite(array).all() for array in after)
    for last in (1, 2, ROWS - 1):
        found, after = decoder_prefill(packed, x, 0, 0, last, cache, text)
        assert jnp.isnan(found).all() == (last >= 2)
        assert all(jnp.isfinite(array).all() for array in after)
    kernel = params["text_model"]["layers"]["mlp"]["up_proj"]["kernel"]
    params["text_model"]["layers"]["mlp"]["up_proj"]["kernel"] = kernel.at[1, 3, 5].set(jnp.nan)
    packed = pack_decoder(params, text, "float32")
    assert jnp.isnan(decoder_step(packed, jnp.ones(x.shape), POSITIONS, cache, text)[0][POSITIONS < CAPACITY]).all()
    assert jnp.isnan(decoder_prefill(packed, jnp.ones(x.shape), 0, 0, ROWS - 1, cache, text)[0]).all()


def test_what_does_not_fit_is_refused_before_it_runs():
    text, params, cache = make(ODD, "float32")
    packed, x = pack_decoder(params, text, "float32"), jnp.ones((ROWS, text.hidden_size))
    others = [build for build in native.builds() if native.vector_lanes(build) != native.vector_lanes("baseline")]
    for build in others:
        with pytest.raises(ValueError, match=f"the build {build} packs .* call pack_decoder again"):
            decoder_step(pack_decoder(params, text, "float32", "baseline"), x, POSITIONS, cache, text, build)
    with pytest.raises(ValueError, match="must be float32, as the weights, or bfloat16, got float16"):
        decoder_step(packed, x, POSITIONS, cast(cache, jnp.float16), text)
    with pytest.raises(ValueError, match="a multiple of 256 columns"):
        decoder_step(packed, x, POSITIONS, init_packed_cache(text, ROWS, 100, "float32"), text)
    with pytest.raises(ValueError, match="init_packed_cache's for this config"):
        decoder_step(packed, x, POSITIONS, KVCache(cache.k, cache.v[:, :, :, :256]), text)
    with pytest.raises(ValueError, match="gate_up of the shape"):
        decoder_prefill(packed, x, 0, 0, 0, cache, dataclasses.replace(text, intermediate_size=77))
    # Where a chunk lies is data, so the compiled code refuses it; JAX raises either error, as it waits or not.
    for row, start, last in [(0, CAPACITY - 2, 5), (ROWS, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, ROWS)]:
        with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="beyond its padding or the cache"):
            jax.block_until_ready(decoder_prefill(packed, x, row, start, last, cache, text))
