"""What a model answers to a chat."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answers to a chat.

    Attributes:
      text: without the stop that ended it, and without special tokens unless `skip_special_tokens` is False.
      ids: of all tokens that were generated, one that ended the answer included.
      finish_reason: "stop" if the model, a stop, `should_stop` or the end of a grammar ended the answer, "length" if it
        was cut off by `max_new_tokens` or by the generator's `max_length`.
      num_prompt_tokens: visual tokens included.
      num_cached_tokens: those of the prompt that a session held already; they were not computed again.
      num_encoded: images and videos that were encoded; the visual tokens of others were still known.
      seconds: spent on this chat, by "encode" (images), "prefill" (prompt and first token) and "decode" (other tokens,
        shared with the chats in the other slots).
      logprobs: of each of `ids`, in the model's own distribution, which no setting changes; None if not asked for.
    """

    text: str
    ids: list[int]
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_encoded: int
    seconds: dict[str, float]
    logprobs: list[float] | None = None
