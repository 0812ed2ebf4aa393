"""Streams of real answers in every script: the pieces are the answer, in whole characters, and no stop leaks."""

import re

import pytest

import multipatch_jax as mp

# Random weights write no text, so a grammar makes them: two, three and four bytes a character, and so many tokens.
TEXT = re.compile("[aé\u00df漢字🤖👩 .]{1,14}")
STOPS = [(), ("漢",), ("🤖.", "a é"), ("字字", " ", "👩")]


@pytest.fixture(scope="module")
def generator(talker):
    return mp.Generator(talker.params, config=talker.config, processor=talker.processor, max_length=256, eos_ids=())


def read(stream):
    """(the pieces, the answer)."""
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_the_pieces_of_a_stream_are_the_answer_in_whole_characters(count, generator):
    reasons = []
    for number, stops in enumerate(STOPS):
        seeds = list(range(number, count, len(STOPS)))
        settings = {"grammar": TEXT, "temperature": 2.0, "stop": stops, "max_new_tokens": 25}
        answers = generator.generate(["a"] * len(seeds), seed=seeds, **settings)
        for seed, expected in zip(seeds, answers, strict=True):
            pieces, answer = read(generator.stream("a", seed=seed, **settings))
            assert (answer.text, answer.ids) == (expected.text, expected.ids)
            assert "".join(pieces) == answer.text
            # Of a character that `max_new_tokens` cuts, the bytes that there are come last.
            whole = pieces[:-1] if answer.finish_reason == "length" else pieces
            assert not any("\ufffd" in piece for piece in whole)
            assert not any(stop in answer.text for stop in stops)
            reasons.append(answer.finish_reason)
    assert len(reasons) == count
    assert set(reasons) == {"stop", "length"}
