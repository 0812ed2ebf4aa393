"""The moves over slots: rows that know nothing of each other, a cache that is updated in place, chunks of prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multipatch_jax as mp
from multipatch_jax.generate import chunks
from multipatch_jax.generate.engine import Engine, admit, release, start, step
from multipatch_jax.generate.sampling import all_ids, pack_ids
from multipatch_jax.generate.settings import GenerationSettings

ENGINE_ROWS, CAPACITY = 8, 1152
LENGTHS = (1, 31, 32, 33, 90, 256, 257, 700)
ALL = all_ids(49280)
FREE = np.stack([ALL] * ENGINE_ROWS)
GREEDY, DRAWN = GenerationSettings(), GenerationSettings(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=5)


@pytest.fixture(scope="module")
def engine(talker):
    compute = mp.nn.resolve_compute(mp.Compute(), "float32")
    return Engine(talker.config.text, talker.config.image_token_id, compute, ENGINE_ROWS, CAPACITY, "float32")


@pytest.fixture(scope="module")
def params(talker):
    return mp.nn.split_layers(talker.params)


@pytest.fixture(scope="module")
def prompts():
    chance = np.random.default_rng(0)
    return [chance.integers(0, 49000, length).astype(np.int32) for length in LENGTHS]


def admitted(params, engine, slots, row, prompt, settings, tokens=None, allowed=ALL):
    """The slots with a prompt in one of them, and the first token of its answer."""
    tokens = np.zeros((0, engine.text.hidden_size), np.float32) if tokens is None else tokens
    token = None
    for chunk in chunks.prompt_chunks(engine, row, prompt, tokens, settings.sampling(), allowed=allowed):
        slots, token = admit(params, slots, chunk, first=bool(chunk.start == 0), engine=engine)
    assert token is not None
    return slots, (token[0][0], token[1][0])


def answers(params, engine, rows, settings, steps=6, slots=None, allowed=()):
    """{row: (ids, logprobs)} of prompts {row: ids}, all of which are in slots at the same time.

    `allowed` has the ids that all tokens of a row may have, for rows that may not have all.
    """
    words = {row: pack_ids(allowed[row], 49280) if row in allowed else ALL for row in range(ENGINE_ROWS)}
    slots = start(engine=engine) if slots is None else slots
    found = {row: [] for row in rows}
    for row, prompt in rows.items():
        slots, token = admitted(params, engine, slots, row, prompt, settings, allowed=words[row])
        found[row].append(token)
    for _ in range(steps):
        slots, (ids, logprobs) = step(params, slots, np.stack(list(words.values())), engine=engine)
        for row in rows:
            found[row].append((ids[row], logprobs[row]))
    return {row: np.array(jax.device_get(tokens), np.float64).T for row, tokens in found.items()}


@pytest.mark.parametrize("settings", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_each_row_of_a_ragged_batch_is_what_it_is_alone(settings, params, engine, prompts):
    together = answers(params, engine, dict(enumerate(prompts)), settings)
    for row, prompt in enumerate(prompts):
        alone = answers(params, engine, {row: prompt}, settings)
        np.testing.assert_array_equal(alone[row], together[row], err_msg=f"row {row}")
    assert len({tuple(one[0]) for one in together.values()}) == len(prompts)  # the answers differ from each other


@pytest.mark.parametrize("settings", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_row_has_the_tokens_that_it_may_have_and_its_mates_are_free(settings, params, engine, prompts):
    free = answers(params, engine, dict(enumerate(prompts)), settings)
    allowed = {row: range(1000 * row, 1000 * row + 40) for row in (1, 4, 7)}
    found = answers(params, engine, dict(enumerate(prompts)), settings, allowed=allowed)
    for row in range(ENGINE_ROWS):
        if row in allowed:
            assert set(found[row][0]) <= set(allowed[row])
            alone = answers(params, engine, {row: prompts[row]}, settings, allowed=allowed)
            np.testing.assert_array_equal(alone[row], found[row])
        else:
            np.testing.assert_array_equal(found[row], free[row])


def test_what_a_slot_held_before_is_never_seen(params, engine, prompts):
    """The columns that nothing may read hold large numbers here, and a longer chat's answer was in the slot before."""
    expected = answers(params, engine, {2: prompts[4]}, DRAWN)
    dirty = start(engine=engine)
    dirty = dirty._replace(cache=jax.tree.map(lambda x: jnp.full_like(x, 1e4), dirty.cache))
    dirty, _ = admitted(params, engine, dirty, 2, prompts[7], GREEDY)
    dirty, _ = step(params, dirty, FREE, engine=engine)
    found = answers(params, engine, {2: prompts[4]}, DRAWN, slots=release(dirty, np.int32(2)))
    np.testing.assert_array_equal(found[2], expected[2])


def test_the_moves_leave_other_slots_as_they_are(params, engine, prompts):
    """Slot 1 is active, slot 3 is released, and slot 5 is admitted."""

    def rows(slots, row):
        cache = [np.asarray(x[row]) for x in jax.tree.leaves(slots.cache)]
        return cache + [np.asarray(x[row]) for x in jax.tree.leaves(slots._replace(cache=()))]

    slots, _ = admitted(params, engine, start(engine=engine), 1, prompts[3], DRAWN)
    slots, _ = admitted(params, engine, slots, 3, prompts[4], DRAWN)
    slots = release(slots, np.int32(3))
    before = {row: rows(slots, row) for row in (1, 3)}
    slots, _ = admitted(params, engine, slots, 5, prompts[6], GREEDY)
    for row in (1, 3):
        jax.tree.map(np.testing.assert_array_equal, rows(slots, row), before[row])
    slots, _ = step(params, slots, FREE, engine=engine)
    jax.tree.map(np.testing.assert_array_equal, rows(slots, 3), before[3])
    assert int(slots.lengths[1]) == len(prompts[3]) + 1


def test_a_prompt_in_one_chunk_and_in_many_gives_the_same(params, engine, prompts, monkeypatch):
    """Up to rounding: the programs differ."""
    whole, _ = admitted(params, engine, start(engine=engine), 0, prompts[7], GREEDY)
    monkeypatch.setattr(chunks, "SIZES", (32,))
    cut, _ = admitted(params, engine, start(engine=engine), 0, prompts[7], GREEDY)
    count = len(prompts[7])
    for a, b in zip(whole.cache, cut.cache, strict=True):
        np.testing.assert_allclose(a.k[0, ..., :count], b.k[0, ..., :count], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(a.v[0, :, :count], b.v[0, :, :count], rtol=1e-4, atol=1e-4)
    assert int(whole.last_ids[0]) == int(cut.last_ids[0])


def test_the_cache_is_donated_and_never_copied(params, engine):
    engine = dataclasses.replace(engine, capacity=16384)  # a cache much larger than all else
    slots = jax.eval_shape(lambda: start(engine=engine))
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(slots.cache))
    ids, tokens = np.zeros(32, np.int32), np.zeros((32, engine.text.hidden_size), np.float32)
    zero = np.array(0, np.int32)
    seen = np.zeros(engine.text.vocab_size, bool)
    chunk = chunks.Chunk(zero, zero, zero, np.array(False), ids, tokens, seen, GREEDY.sampling(), ALL)
    moves = {
        "step": step.lower(params, slots, FREE, engine=engine),
        "first chunk": admit.lower(params, slots, chunk, first=True, engine=engine),
        "next chunk": admit.lower(params, slots, chunk, first=False, engine=engine),
        "release": release.lower(slots, zero),
    }
    for name, lowered in moves.items():
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        assert memory.alias_size_in_bytes >= cache, name
        assert memory.temp_size_in_bytes < cache, name


@given(length=st.integers(1, 3000), capacity=st.sampled_from([128, 256, 512, 1024, 4096]))
def test_chunks_cover_a_prompt(length, capacity):
    sizes = chunks.chunk_sizes(capacity)
    found = chunks.split(length, sizes)
    assert [begin for begin, _ in found] == [0, *np.cumsum([size for _, size in found])[:-1]]
    assert sum(size for _, size in found[:-1]) < length <= sum(size for _, size in found)
    assert {size for _, size in found} <= set(sizes)
    begin, size = found[-1]
    assert size == sizes[0] or 2 * (length - begin) > size
