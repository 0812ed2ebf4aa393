"""Answers by compiled code on a CPU, beside those of the decoder in JAX."""

import jax
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.generate.run import new_held_slots
from tests.helpers import tolerances
from tests.helpers.compiled import compiled_code

pytestmark = compiled_code
PROMPTS = ["a", "What is <image>?", "b" * 300, "to be or not to be"]


def generator_of(talker, encoder, **options):
    fixed = {"config": talker.config, "processor": talker.processor, "max_length": 1024, "eos_ids": ()}
    return mp.Generator(talker.params, **fixed, compute=mp.Compute(encoder=encoder), **options)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_those_of_jax(talker, photo, batch_size):
    images = [[photo] if "<image>" in prompt else [] for prompt in PROMPTS]
    compiled, in_jax = (
        generator_of(talker, encoder, batch_size=batch_size).generate(PROMPTS, images, max_new_tokens=24, logprobs=True)
        for encoder in ("native", "flax")
    )
    for ours, theirs in zip(compiled, in_jax, strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs
        assert theirs.logprobs
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=tolerances.LOGITS, rtol=0)


@pytest.mark.parametrize("encoder", ["native", "flax"])
def test_a_cache_of_bfloat16_takes_half_the_memory(talker, encoder):
    exact, rounded = (generator_of(talker, encoder, cache_dtype=dtype) for dtype in (None, "bfloat16"))
    answers = [generator.generate(PROMPTS[2:], max_new_tokens=8, logprobs=True)[0] for generator in (exact, rounded)]
    sizes = [
        sum(x.nbytes for x in jax.tree.leaves(new_held_slots(one._engines[-1]).slots.cache)) for one in (exact, rounded)
    ]
    assert sizes[0] == 2 * sizes[1]
    first, second = (np.array(answer.logprobs) for answer in answers)
    assert 0 < np.abs(first - second).max() < 0.1  # rounded to 8 bits: near, and not the same
    assert answers[0].ids == answers[1].ids


def test_another_dtype_of_the_cache_is_refused(talker):
    with pytest.raises(ValueError, match=r'cache_dtype must be None or "bfloat16", got .float8'):
        generator_of(talker, "auto", cache_dtype="float8")


def test_compiled_code_is_what_a_cpu_takes_by_itself(talker):
    by_itself, compiled, in_jax = (generator_of(talker, encoder) for encoder in ("auto", "native", "flax"))
    packed = ["packed" in generator._model.decoder for generator in (by_itself, compiled, in_jax)]
    assert packed == [True, True, False]


def test_more_slots_than_the_compiled_step_takes_run_in_jax(talker):
    assert "packed" not in generator_of(talker, "native", batch_size=65)._model.decoder
