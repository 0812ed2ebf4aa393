"""Find what the assistant says in a chat from the chat's structure, where the template does not mark it.

The answer of a message is what the template adds to the chat before it: the text up to there, with the prompt for an
answer, is what the model is given, and what follows is what it has to write.
"""

from collections.abc import Callable, Collection
from typing import Any

from multipatch_jax.text.template import Spans


def answer_spans(
    text: str, plain: list[dict[str, Any]], render: Callable[[list[dict[str, Any]], bool], str], ends: Collection[str]
) -> Spans | None:
    """Return the [start, end) of each answer in a chat's text, from the end of its prompt to the end of its turn.

    Args:
      text: of the whole chat.
      plain: its messages.
      render: makes a text of the first messages of the chat, with the prompt for an answer if the bool is True.
      ends: special tokens. White space that follows one of them at the end of a turn is not part of the answer, because
        a model that generates has stopped by then.

    Returns:
      None if the template does not write a chat in the order of its messages, each after the text of those before it.
    """
    spans = []
    for index, message in enumerate(plain):
        if message["role"] != "assistant":
            continue
        try:
            prompt, turn = render(plain[:index], True), render(plain[: index + 1], False)
        except ValueError:  # the template refuses a chat that ends there
            return None
        if not (text.startswith(turn) and turn.startswith(prompt)):
            return None
        bare = turn.rstrip()
        end = len(bare) if bare.endswith(tuple(ends)) else len(turn)
        spans.append((len(prompt), max(end, len(prompt))))
    return spans
