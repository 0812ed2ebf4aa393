"""Turn generated ids into text, a token at a time, without ever showing half a character."""

from typing import Any


class Detokenizer:
    """The text of the ids of one answer.

    A character may be spread over several tokens: it comes whole, with the last of them. The pieces of all ids and
    `flush` add up to the text that `tokenizer.decode` gives for all ids at once.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True):
        """Begin an answer.

        Args:
          tokenizer: a `tokenizers.Tokenizer`.
          skip_special_tokens: whether the text lacks special tokens.
        """
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._shown = 0  # characters that have been returned

    def push(self, token_id: int) -> str:
        """Return the text that is complete with this id: "" where a character, or nothing visible, has only begun."""
        self._ids.append(token_id)
        piece = self._stream.step(self._tokenizer, token_id) or ""
        self._shown += len(piece)
        return piece

    def flush(self) -> str:
        """Return the text after the last piece, at the end of the answer; bytes of no whole character become U+FFFD."""
        return self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)[self._shown :]
