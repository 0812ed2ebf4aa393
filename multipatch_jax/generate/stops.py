"""End a text before a stop string, while the text arrives in pieces that may split one."""

from collections.abc import Sequence
from typing import NamedTuple


class Cut(NamedTuple):
    """What is known about a text so far.

    Attributes:
      text: what certainly belongs to the text.
      held: what follows, and may become a stop: it goes in front of the next piece.
      stopped: whether a stop was found; the text then ends, and `held` is empty.
    """

    text: str
    held: str
    stopped: bool


def cut_at_stop(text: str, stops: Sequence[str]) -> Cut:
    """Cut a text before the stop that is complete first.

    Of two stops that are complete with the same character, the longer one counts. So the result is the same however
    the text is split into pieces, and no later piece changes it.

    Args:
      text: what was held, and the next piece.
      stops: none of them empty.
    """
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    if found:
        return Cut(text[: min(found)[1]], "", True)
    longest = max((len(stop) for stop in stops), default=1) - 1
    for start in range(max(len(text) - longest, 0), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return Cut(text[:start], text[start:], False)
    return Cut(text, "", False)
