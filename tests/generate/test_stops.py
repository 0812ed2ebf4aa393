"""Stops: a text ends before the first one, wherever the pieces that it arrives in end."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.generate.stops import Cut, cut_at_stop

FEW = st.text("ab", max_size=12)  # of two letters, so that stops are found, and nearly found, all the time
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop begins that is complete first, read a character at a time; None if there is none."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end - max(map(len, found))
    return None


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(FEW, max_size=6), stops=STOPS)
def test_any_pieces_give_the_text_cut_at_the_first_stop(pieces, stops):
    text, end = "".join(pieces), first_stop("".join(pieces), stops)
    shown, held, arrived = "", "", ""
    for piece in pieces:
        arrived += piece
        added, held, stopped = cut_at_stop(held + piece, stops)
        shown += added
        assert stopped == (first_stop(arrived, stops) is not None)
        if stopped:
            break
        assert shown + held == arrived
        # What is held may still become a stop; a character more would have been shown too late.
        assert not held or any(stop.startswith(held) for stop in stops)
    assert shown + held == text[:end]


@settings(max_examples=200, deadline=None)
@given(text=FEW, stops=STOPS)
def test_what_is_shown_belongs_to_the_text_whatever_follows(text, stops):
    cut = cut_at_stop(text, stops)
    for more in ("", "a", "b", "ab", "ba", "aab", "bba"):
        end = first_stop(text + more, stops)
        assert end is None or len(cut.text) <= end


@pytest.mark.parametrize(
    ("text", "stops", "cut"),
    [
        ("abc", [], Cut("abc", "", False)),
        ("abc", ["bd"], Cut("abc", "", False)),
        ("ab", ["bd"], Cut("a", "b", False)),
        ("abd", ["bd"], Cut("a", "", True)),
        ("a\n\nUser: b", ["User:", "\n\n"], Cut("a", "", True)),
        ("xabc", ["abc", "b"], Cut("xa", "", True)),  # "b" was complete first
        ("xab", ["b", "ab"], Cut("x", "", True)),  # of two that are complete at once, the longer one
        ("🤖!", ["!?"], Cut("🤖", "!", False)),
        ("", ["a"], Cut("", "", False)),
    ],
)
def test_cases(text, stops, cut):
    assert cut_at_stop(text, stops) == cut
