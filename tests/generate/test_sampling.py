"""Sampling: what is drawn and how often, what a draw depends on, and rows without usable logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare

from multipatch_jax.generate.sampling import Sampling, pack_ids, process_logits, sample

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}
MIXED = [  # one row each
    {"temperature": 0.0},
    {},
    {"temperature": 0.5, "top_k": 3},
    {"top_p": 0.8, "seed": 7},
    {"min_p": 0.2},
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 2**31 - 1},
]


def rows(*settings: dict[str, Any]) -> Sampling:
    """The settings of a batch; those of a row that are not given are neutral."""
    values = {name: np.array([row.get(name, NEUTRAL[name]) for row in settings]) for name in NEUTRAL}
    whole = {"top_k", "seed"}
    return Sampling(**{name: x.astype(np.int32 if name in whole else np.float32) for name, x in values.items()})


DRAWS = 20_000


def draws(logits: Any, seen: Any = (), **setting: Any) -> np.ndarray:
    """Draws from the same logits (V,), at consecutive positions; `seen` has ids."""
    size = len(logits)
    sampling = Sampling(*(np.broadcast_to(field, DRAWS) for field in rows(setting)))
    mask = np.isin(np.arange(size), seen)
    every = np.broadcast_to(np.asarray(logits, np.float32), (DRAWS, size))
    ids, _ = sample(every, sampling, np.arange(DRAWS, dtype=np.int32), np.broadcast_to(mask, (DRAWS, size)))
    return np.asarray(ids)


def of_seven(*logits: float) -> np.ndarray:
    """Logits of a vocabulary of 7, whose last tokens have no probability: one compiled program serves many tests."""
    return np.array([*logits, *[-np.inf] * (7 - len(logits))])


def random_logits(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape, scale=3).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Frequencies.

LOGITS = np.log(np.array([0.02, 0.3, 0.08, 0.2, 0.05, 0.25, 0.1]))
FILTERS = [
    ({}, [0, 1, 2, 3, 4, 5, 6]),
    ({"top_k": 3}, [1, 3, 5]),
    ({"top_p": 0.8}, [1, 3, 5, 6]),  # 0.3 + 0.25 + 0.2 = 0.75 are less than 0.8
    ({"min_p": 0.3}, [1, 3, 5, 6]),
    ({"temperature": 2.0}, [0, 1, 2, 3, 4, 5, 6]),
    ({"temperature": 0.5, "top_k": 5, "top_p": 0.95, "min_p": 0.2}, [1, 3, 5]),
]


@pytest.mark.parametrize(("setting", "kept"), FILTERS, ids=lambda case: str(case)[:40])
def test_frequencies_are_the_softmax_of_what_a_filter_keeps(setting, kept):
    expected = np.zeros(len(LOGITS))
    expected[kept] = softmax(LOGITS[kept] / setting.get("temperature", 1))
    found = np.bincount(draws(LOGITS, **setting), minlength=len(LOGITS))
    assert found[expected == 0].sum() == 0
    assert chisquare(found[kept], expected[kept] * DRAWS).pvalue > 0.001


def test_frequencies_with_a_penalty_are_the_softmax_of_the_penalised_logits():
    found = np.bincount(draws(of_seven(1, -1, 1, -1), seen=[0, 1], repetition_penalty=2.0), minlength=4)
    assert chisquare(found, softmax([0.5, -2.0, 1.0, -1.0]) * DRAWS).pvalue > 0.001


def test_frequencies_over_several_blocks_of_ids_are_the_softmax():
    logits = random_logits(0, 300) / 3
    logits[::7] = -np.inf
    found, expected = np.bincount(draws(logits), minlength=300), softmax(logits.astype(float))
    assert found[::7].sum() == 0
    assert chisquare(found[expected > 0], expected[expected > 0] * DRAWS).pvalue > 0.001


def test_draws_at_neighbouring_positions_and_of_neighbouring_seeds_are_independent():
    logits = of_seven(*np.log([0.5, 0.3, 0.2]))
    expected = np.outer([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]).ravel() * DRAWS / 2
    sampling = rows(*({"seed": seed} for seed in range(DRAWS)))
    every = np.broadcast_to(logits.astype(np.float32), (DRAWS, 7))
    of_seeds = np.asarray(sample(every, sampling, np.zeros(DRAWS, np.int32), np.zeros((DRAWS, 7), bool))[0])
    for ids in (draws(logits), of_seeds):
        pairs = np.bincount(ids[0::2] * 3 + ids[1::2], minlength=9)
        assert chisquare(pairs, expected).pvalue > 0.001


# ---------------------------------------------------------------------------------------------------------------------
# What a row depends on.


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(len(MIXED))))
def test_a_row_is_the_same_alone_and_among_any_others(seed, order):
    rng = np.random.default_rng(seed)
    logits, seen = random_logits(seed, len(MIXED), 257), rng.random((len(MIXED), 257)) < 0.3
    positions, sampling = rng.integers(0, 2000, len(MIXED)).astype(np.int32), rows(*MIXED)
    ids, logprobs = map(np.asarray, sample(logits, sampling, positions, seen))
    order = np.array(order)
    mixed = sample(logits[order], Sampling(*(x[order] for x in sampling)), positions[order], seen[order])
    np.testing.assert_array_equal(mixed[0], ids[order])
    np.testing.assert_array_equal(mixed[1], logprobs[order])
    for row in range(len(MIXED)):
        one = slice(row, row + 1)
        alone, logprob = sample(logits[one], Sampling(*(x[one] for x in sampling)), positions[one], seen[one])
        assert alone[0] == ids[row]
        np.testing.assert_allclose(logprob[0], logprobs[row], atol=1e-5)


def test_a_seed_gives_the_same_ids_again_and_another_seed_gives_others():
    first = draws(LOGITS, seed=3)
    np.testing.assert_array_equal(first, draws(LOGITS, seed=3))
    assert (first != draws(LOGITS, seed=4)).any()


def test_one_program_serves_every_mix_of_settings(compilations):
    logits, seen = jnp.asarray(random_logits(3, len(MIXED), 263)), np.zeros((len(MIXED), 263), bool)
    positions = np.zeros(len(MIXED), np.int32)
    sample(logits, rows(*MIXED), positions, seen)
    assert any("sample" in message for message in compilations())
    for row in MIXED:
        sample(logits, rows(*[row] * len(MIXED)), positions, seen)
    assert compilations() == []


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), density=st.sampled_from([0.05, 0.5, 1.0]))
def test_what_is_not_allowed_has_no_probability_for_any_setting(seed, density):
    """Ids are those of logits that are -inf there, and logprobs those of the model; a mate may be free."""
    rng = np.random.default_rng(seed)
    count = len(MIXED)
    logits, seen = random_logits(seed, 2 * count, 257), rng.random((2 * count, 257)) < 0.3
    positions, sampling = rng.integers(0, 2000, 2 * count).astype(np.int32), rows(*MIXED, *MIXED)
    mask = rng.random(logits.shape) < density
    mask[np.arange(2 * count), rng.integers(0, 257, 2 * count)] = True
    mask[count:] = True
    allowed = np.stack([pack_ids(np.flatnonzero(row), 257) for row in mask])
    allowed[count:] = 2**32 - 1
    ids, logprobs = map(np.asarray, sample(logits, sampling, positions, seen, allowed))
    expected, _ = sample(np.where(mask, logits, -np.inf), sampling, positions, seen)
    np.testing.assert_array_equal(ids, expected)
    of_model = log_softmax(logits.astype(float), axis=-1)[np.arange(2 * count), ids]
    np.testing.assert_allclose(logprobs, of_model, atol=1e-5)
    free = sample(logits, sampling, positions, seen)
    np.testing.assert_array_equal(ids[count:], np.asarray(free[0])[count:])
    np.testing.assert_array_equal(logprobs[count:], np.asarray(free[1])[count:])


# ---------------------------------------------------------------------------------------------------------------------
# Single values.


@pytest.mark.parametrize("mates", [[], MIXED])
def test_neutral_settings_leave_the_logits_as_they_are(mates):
    logits = random_logits(4, len(mates) + 2, 64)
    logits[:2, :6] = [0.0, -0.0, -np.inf, 3e38, -3e38, 1e-30]
    sampling = rows({}, {"temperature": 0.0, "top_k": 3, "top_p": 0.1, "min_p": 0.9}, *mates)
    found = jax.jit(process_logits)(logits, sampling, np.ones(logits.shape, bool))
    np.testing.assert_array_equal(np.asarray(found)[:2].view(np.uint32), logits[:2].view(np.uint32))


def test_logprobs_are_of_the_models_own_distribution():
    logits = random_logits(5, len(MIXED), 100)
    ids, logprobs = sample(logits, rows(*MIXED), np.arange(len(MIXED), dtype=np.int32), logits > 2)
    expected = log_softmax(logits.astype(float), axis=-1)[np.arange(len(MIXED)), np.asarray(ids)]
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_greedy_takes_the_first_of_the_most_likely_tokens():
    logits = np.array([[100.0, 500.0, 500.0, 200.0]] * 3, np.float32)
    sampling = rows({"temperature": 0.0}, {"temperature": 1e-37}, {"temperature": 0.0, "repetition_penalty": 2.0})
    seen = np.array([[False, True, False, False]] * 3)
    assert sample(logits, sampling, np.zeros(3, np.int32), seen)[0].tolist() == [1, 1, 2]


def test_equally_likely_tokens_are_kept_or_dropped_together():
    logits = of_seven(*np.log([0.4, 0.2, 0.2, 0.1, 0.1]))
    for setting in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        assert set(draws(logits, **setting).tolist()) == {0, 1, 2}
    assert set(draws(of_seven(0, 0, 0), top_p=1e-9).tolist()) == {0, 1, 2}
    assert set(draws(of_seven(0.0, -0.0), top_k=1).tolist()) == {0, 1}


def test_filters_keep_at_least_one_token_and_may_be_wider_than_the_vocabulary():
    assert set(draws(LOGITS, top_k=100, temperature=30.0).tolist()) == set(range(7))
    one_token = np.zeros(1)
    for setting in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert set(draws(LOGITS, **setting).tolist()) == {LOGITS.argmax()}
        assert set(draws(one_token, **setting).tolist()) == {0}
    assert set(draws(one_token, top_k=5).tolist()) == {0}


def test_a_row_without_usable_logits_gives_no_id_and_its_mates_give_theirs():
    logits = random_logits(7, 8, 50)
    logits[1, 3], logits[3, 49], logits[5], logits[6] = np.nan, np.inf, -np.inf, np.nan
    broken = np.array([1, 3, 5, 6])
    for setting in MIXED:
        args = rows(*[setting] * 8), np.arange(8, dtype=np.int32), np.zeros((8, 50), bool)
        ids, logprobs = map(np.asarray, sample(logits, *args))
        whole, _ = sample(np.nan_to_num(logits, nan=0, posinf=0, neginf=0), *args)
        assert (ids[broken] == -1).all()
        assert np.isnan(logprobs[broken]).all()
        usable = np.setdiff1d(np.arange(8), broken)
        np.testing.assert_array_equal(ids[usable], np.asarray(whole)[usable])
        assert np.isfinite(logprobs[usable]).all()


def test_a_row_whose_allowed_tokens_have_no_probability_gives_no_id():
    logits = random_logits(8, 3, 40)
    logits[1, :35] = -np.inf
    allowed = np.stack([pack_ids(ids, 40) for ids in ((3, 4), (3, 4), (3, 39))])
    for setting in MIXED:
        ids, _ = sample(logits, rows(*[setting] * 3), np.arange(3, dtype=np.int32), np.zeros((3, 40), bool), allowed)
        assert ids[0] in (3, 4)
        assert ids[1] == -1
        assert ids[2] in (3, 39)
