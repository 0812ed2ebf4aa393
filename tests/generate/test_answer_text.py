"""The text of an answer from its ids: stops across tokens, `should_stop`, and what is left at the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.generate.answer_text import AnswerText
from multipatch_jax.text import Processor
from tests.helpers.tokenizer import save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Processor.from_pretrained(folder).tokenizer


def answer(tokenizer, text: str, **how) -> tuple[AnswerText, list[str], int]:
    """(the answer, its pieces, the number of ids that it took) when the model writes `text`, a byte a token."""
    found, pieces = AnswerText(tokenizer, **how), []
    ids = tokenizer.encode(text).ids
    for number, one in enumerate(ids, 1):
        pieces.append(found.push(one))
        if found.stopped:
            return found, [*pieces, found.finish()], number
    return found, [*pieces, found.finish()], len(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab🤖é漢", max_size=12), stops=st.lists(st.text("ab🤖é", min_size=1, max_size=3), max_size=2))
def test_an_answer_is_its_text_up_to_a_stop(tokenizer, text, stops):
    found, pieces, _ = answer(tokenizer, text, stops=stops)
    assert "".join(pieces) == found.text
    assert text.startswith(found.text)
    assert found.stopped == any(stop in text for stop in stops)
    if not found.stopped:
        assert found.text == text
    else:
        assert any(text[len(found.text) :].startswith(stop) for stop in stops)
        assert not any(stop in found.text for stop in stops)


def test_pieces_are_held_back_while_they_may_become_a_stop(tokenizer):
    found, pieces, used = answer(tokenizer, "a.\n\nb", stops=["\n\nUser"])
    assert pieces == ["a", ".", "", "", "\n\nb", ""]
    assert (found.text, found.stopped, used) == ("a.\n\nb", False, 5)
    found, pieces, used = answer(tokenizer, "a.\n\nUser: more", stops=["\n\nUser"])
    assert (found.text, found.stopped, used) == ("a.", True, 8)
    found, pieces, _ = answer(tokenizer, "ab", stops=["bc"])
    assert pieces == ["a", "", "b"]  # held to the end


def test_bytes_of_no_character_come_at_the_end(tokenizer):
    found = AnswerText(tokenizer)
    ids = tokenizer.encode("a🤖").ids
    assert [found.push(one) for one in ids[:3]] == ["a", "", ""]
    assert found.finish() == "\ufffd"
    assert found.text == "a\ufffd"


def test_should_stop_sees_the_text_so_far_and_ends_the_answer(tokenizer):
    seen = []

    def three(text: str) -> bool:
        seen.append(text)
        return len(text) == 3

    found, pieces, used = answer(tokenizer, "a🤖bc", stops=["bd"], should_stop=three)
    assert seen == ["a", "a🤖", "a🤖b"]  # "b" is held back, and seen
    assert "".join(pieces) == found.text == "a🤖b"
    assert (found.stopped, used) == (True, 6)


def test_special_tokens_stay_if_asked_for(tokenizer):
    assert answer(tokenizer, "a<global-img>b")[0].text == "ab"
    assert answer(tokenizer, "a<global-img>b", skip_special_tokens=False)[0].text == "a<global-img>b"
