"""The text of one answer while it grows: whole characters, up to a stop."""

from collections.abc import Callable, Sequence
from typing import Any

from multipatch_jax.generate.detokenize import Detokenizer
from multipatch_jax.generate.stops import cut_at_stop


class AnswerText:
    """The text of one answer, from its ids.

    Attributes:
      text: what certainly belongs to the answer; pieces that have been returned add up to it.
      stopped: whether a stop, or `should_stop`, has ended the answer. No id may follow.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: Sequence[str] = (),
        should_stop: Callable[[str], bool] | None = None,
        skip_special_tokens: bool = True,
    ):
        """Begin an answer.

        Args:
          tokenizer: a `tokenizers.Tokenizer`.
          stops: texts that end the answer, and do not belong to it.
          should_stop: called with the text so far whenever it has grown, what may become a stop included; True ends
            the answer, which keeps that text.
          skip_special_tokens: as in `Detokenizer`.
        """
        self.text, self.stopped = "", False
        self._held = ""
        self._stops, self._should_stop = stops, should_stop
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)

    def push(self, token_id: int) -> str:
        """Return the text that certainly belongs to the answer with this id, and was not returned before."""
        piece = self._detokenizer.push(token_id)
        shown = self._add(piece)
        if piece and not self.stopped and self._should_stop is not None and self._should_stop(self.text + self._held):
            self.stopped = True
            shown += self._release()
        return shown

    def finish(self) -> str:
        """Return what is left at the end of the answer: what could have become a stop, and bytes of no character."""
        return "" if self.stopped else self._add(self._detokenizer.flush()) + self._release()

    def _add(self, piece: str) -> str:
        shown, self._held, self.stopped = cut_at_stop(self._held + piece, self._stops)
        self.text += shown
        return shown

    def _release(self) -> str:
        shown, self._held = self._held, ""
        self.text += shown
        return shown
