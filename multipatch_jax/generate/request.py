"""The request that becomes an answer, a token at a time, and how chats are read as requests."""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from multipatch_jax.config import ModelConfig
from multipatch_jax.generate.answer import Answer
from multipatch_jax.generate.answer_text import AnswerText
from multipatch_jax.generate.grammar import Matcher
from multipatch_jax.generate.model import Model
from multipatch_jax.generate.settings import GenerationSettings, settings_of_chats
from multipatch_jax.generate.visual_tokens import Source
from multipatch_jax.text import Chat, TextInputs


@dataclasses.dataclass
class Request:
    """A chat on the way to its answer.

    Attributes:
      prompt: ids of the prompt.
      sources: what stands in the prompt's places, in order, from token `num_cached_tokens` on.
      settings: of the answer.
      limit: most tokens of the answer.
      eos_ids: ids that end the answer.
      text: the answer's text so far.
      num_cached_tokens: tokens of the prompt that its slot holds already.
      visual_tokens: of each of `sources`, when the request has been admitted.
      num_encoded: images and videos that were encoded for the answer.
      matcher: the place of the answer in its grammar, if it has one.
      finish_reason: as in `Answer`; None while the answer goes on.
      ids, logprobs, seconds: as in `Answer`, so far.
    """

    prompt: Int32[np.ndarray, " S"]
    sources: list[Source]
    settings: GenerationSettings
    limit: int
    eos_ids: Collection[int]
    text: AnswerText
    matcher: Matcher | None = None
    num_cached_tokens: int = 0
    visual_tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    num_encoded: int = 0
    finish_reason: str | None = None
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    _first_token_at: float = 0.0

    def take(self, token_id: int, logprob: float) -> str:
        """Add a token to the answer, and return the text that is certain now and was not before.

        Raises:
          ValueError: there was no token, because the logits were not finite; or the grammar cannot go on.
        """
        if token_id < 0:
            raise ValueError(
                f"Logits must be finite numbers, and those of token {len(self.ids)} of an answer are not: look for "
                f'NaN in the params, and compute in "bfloat16" or "float32" rather than "float16".'
            )
        self._first_token_at = self._first_token_at or time.perf_counter()
        self.ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id in self.eos_ids:
            return self._end("stop")
        piece = self.text.push(token_id)
        if self.text.stopped:
            return piece + self._end("stop")
        if self.matcher is not None:
            self.matcher.accept(token_id)
            if self.matcher.complete:
                return piece + self._end("stop")
        return piece + (self._end("length") if len(self.ids) == self.limit else "")

    def _end(self, reason: str) -> str:
        self.finish_reason = reason
        self.seconds["decode"] = time.perf_counter() - self._first_token_at
        return self.text.finish()

    def answer(self, logprobs: bool) -> Answer:
        """Return the finished answer."""
        assert self.finish_reason is not None
        return Answer(
            text=self.text.text,
            ids=self.ids,
            finish_reason=self.finish_reason,
            num_prompt_tokens=len(self.prompt),
            num_cached_tokens=self.num_cached_tokens,
            num_encoded=self.num_encoded,
            seconds=self.seconds,
            logprobs=self.logprobs if logprobs else None,
        )


def read_requests(
    model: Model, chats: Sequence[str | Chat], images: Sequence[Any], given: Mapping[str, Any]
) -> list[Request]:
    """Check chats and settings, load the images, and tokenise the prompts; no device does anything.

    Args:
      model: what will answer.
      chats, images: as in a call of `Processor`.
      given: settings by name, as in `settings_of_chats`.

    Raises:
      ImportError: there is a grammar, and its extra is not installed.
      ValueError: as `Processor`, `settings_of_chats` and `Grammars.matcher`; or a prompt leaves no room for an answer,
        or its ids are not in the model's vocabulary.
      ImageError, FileNotFoundError: as `Processor`.
    """
    config, processor, max_length = model.config, model.processor, model.max_length
    assert config.text is not None
    count = len(chats) if isinstance(chats, Sequence) and not isinstance(chats, str) else 1
    settings = settings_of_chats(count, given)
    matchers = [None if one.grammar is None else model.grammars.matcher(one.grammar) for one in settings]
    padded = dataclasses.replace(processor, pad_token_id=processor.pad_token_id or 0)  # padding is cut off again
    inputs = padded(chats, images, config=config, padding_side="right")
    sources = _sources(inputs, config)
    requests = []
    for number, (ids, mask, of_chat, one, matcher) in enumerate(
        zip(inputs.input_ids, inputs.attention_mask, sources, settings, matchers, strict=True)
    ):
        prompt = ids[mask == 1]
        if not len(prompt):
            raise ValueError(f"A prompt must have at least one token, got an empty text in chat {number}.")
        if len(prompt) >= max_length:
            raise ValueError(
                f"A prompt must have 1 to {max_length - 1} tokens, which leaves room for an answer within "
                f"max_length={max_length}, got {len(prompt)} in chat {number}: raise max_length, or lower "
                f"config.tiling.max_tiles."
            )
        if prompt.max() >= config.text.vocab_size:
            raise ValueError(
                f"Ids must be in the vocabulary, 0 to {config.text.vocab_size - 1}, got {prompt.max()} in chat "
                f"{number}: load the processor from the model's own checkpoint."
            )
        limit = min(one.max_new_tokens, max_length - len(prompt))
        text = AnswerText(processor.tokenizer, tuple(one.stop), one.should_stop, one.skip_special_tokens)
        requests.append(Request(prompt, of_chat, one, limit, model.eos_ids, text, matcher))
    return requests


def _sources(inputs: TextInputs, config: ModelConfig) -> list[list[Source]]:
    """Return, for each text, what stands in its places."""
    images, plans = iter(inputs.images), iter(inputs.plans)
    videos, order = iter(inputs.videos), iter(inputs.order)
    sources = []
    for missing in (inputs.input_ids == config.image_token_id).sum(axis=1):
        found = []
        while missing > 0:
            kind = next(order)
            content = next(images if kind == "image" else videos)
            tiles = next(plans).num_tiles if kind == "image" else len(content)
            found.append(Source("image" if kind == "image" else "video", content))
            missing -= tiles * config.tiling.tokens_per_tile
        sources.append(found)
    return sources
