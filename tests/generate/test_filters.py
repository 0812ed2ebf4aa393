"""Penalty, temperature and filters beside transformers' own, in the order of its `generate`."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from multipatch_jax.generate.sampling import process_logits
from multipatch_jax.generate.settings import settings_of_chats
from tests.helpers.tolerances import SAME_PROGRAM

ours = jax.jit(process_logits)
MODEL: Any = LlamaForCausalLM(
    LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8, vocab_size=8
    )
)


def both(logits: np.ndarray, prompts: np.ndarray, setting: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(our scores, the reference's) of logits (B, V) and prompts (B, S); every row has the same setting."""
    asked: dict[str, Any] = {"do_sample": True, "top_k": 0} | setting  # without `top_k` the reference takes the best 50
    config = GenerationConfig(**asked)
    processors = MODEL._get_logits_processor(config, input_ids_seq_length=prompts.shape[1], device="cpu")
    theirs = processors(torch.from_numpy(prompts), torch.from_numpy(logits.copy())).numpy()
    (drawn,) = settings_of_chats(1, {"temperature": 1.0} | setting)
    one = drawn.sampling()
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, prompts, True, axis=1)
    sampling = type(one)(*(np.broadcast_to(field, len(logits)) for field in one))
    return np.asarray(ours(logits, sampling, seen)), theirs


def inputs(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, size), scale=3).astype(np.float32), rng.integers(0, size, (4, 9))


SETTINGS = [
    {},
    {"temperature": 0.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 5000},  # more than there are
    {"top_p": 0.9},
    {"top_p": 0.1},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.0},
    {"temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2},
    {"temperature": 3.0, "top_k": 300, "top_p": 0.5, "repetition_penalty": 1.2},
    {"temperature": 3.0, "top_k": 300, "min_p": 0.01},
]


def assert_same(mine: np.ndarray, theirs: np.ndarray) -> None:
    """The same tokens are kept, with the same scores but for the last bit: XLA divides by a row's number by multiplying
    with its reciprocal."""
    np.testing.assert_allclose(mine, theirs, rtol=SAME_PROGRAM, atol=0)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_scores_are_the_references(setting):
    assert_same(*both(*inputs(0, 1000), setting))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 5),
    top_k=st.integers(1, 150),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.2, 5),
)
def test_scores_are_the_references_for_any_settings(seed, temperature, top_k, top_p, min_p, penalty):
    logits, prompts = inputs(seed, 97)
    setting = {"temperature": temperature, "top_k": top_k, "repetition_penalty": penalty}
    before, _ = both(logits, prompts, setting)
    # A sum of probabilities that is top_p, but for its roundings, may be on either side.
    assume(_distance(before, 1 - top_p) > 1e-6)
    mine, theirs = both(logits, prompts, setting | {"top_p": top_p})
    assert_same(mine, theirs)
    probabilities = torch.from_numpy(theirs).double().softmax(-1).numpy()
    assume(np.abs(probabilities - min_p * probabilities.max(-1, keepdims=True)).min() > 1e-6)
    assert_same(*both(logits, prompts, setting | {"top_p": top_p, "min_p": min_p}))


def _distance(scores: np.ndarray, limit: float) -> float:
    """How near any sum of a row's least probabilities is to the limit."""
    probabilities = torch.tensor(scores, dtype=torch.float64).softmax(-1).sort(-1).values
    return float((probabilities.cumsum(-1) - limit).abs().min())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 70), min_p=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_ties_are_the_references_where_it_defines_them(seed, top_k, min_p):
    logits = (np.random.default_rng(seed).integers(-3, 4, (4, 64)) * np.log(2)).astype(np.float32)  # powers of two
    _, prompts = inputs(seed, 64)
    assert_same(*both(logits, prompts, {"top_k": top_k}))
    assert_same(*both(logits, prompts, {"min_p": min_p}))


def test_of_ties_in_top_p_all_are_kept_that_the_reference_keeps_one_of():
    """The reference's choice among them is that of an unstable sort."""
    logits, prompts = np.log([[0.4, 0.2, 0.2, 0.1, 0.1]]).astype(np.float32), np.zeros((1, 1), int)
    mine, theirs = both(logits, prompts, {"top_p": 0.5})
    assert np.isfinite(mine).tolist() == [[True, True, True, False, False]]
    assert np.isfinite(theirs).sum() == 2
