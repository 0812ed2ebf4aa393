"""A chat that goes on: what has been read stays in the cache."""

import dataclasses
from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int32

from multipatch_jax.arguments import require_type
from multipatch_jax.generate.answer import Answer
from multipatch_jax.generate.engine import fork
from multipatch_jax.generate.model import Model
from multipatch_jax.generate.request import Request, read_requests
from multipatch_jax.generate.run import HeldSlots, new_held_slots, prefill, run
from multipatch_jax.generate.slots import NEUTRAL
from multipatch_jax.generate.visual_tokens import Source
from multipatch_jax.image import is_one_image

NO_ID = -1  # of a column without a token that a prompt may have: a generated `<image>` has no visual token


class Session:
    """A chat that goes on; `Generator.session` begins one.

    Its answers are those that `Generator.generate` gives to the whole chat, unless rounding decides a close choice.
    Every image is encoded once. A question costs only what the cache lacks of its prompt: as a rule the template's
    marks and the question itself.

    A question whose answer fails, or is not read to its end, leaves the chat as it was.

    Attributes:
      chat: the questions and answers so far, in the form that `Processor` takes. Images are `{"type": "image"}`.
    """

    def __init__(self, model: Model, held: HeldSlots):
        """Begin a chat without images, in the first slot of `held`, which nothing else may use."""
        self.chat: list[dict[str, Any]] = []
        self._model, self._held, self._busy = model, held, False
        self._ids = np.zeros(0, np.int32)  # of the columns that are written
        self._sizes: list[tuple[int, ...]] = []  # shapes of the images' pixels
        self._visual_tokens: list[Float[np.ndarray, "tokens D"]] = []  # of the same images
        self._new = 0  # how many of them, the last ones, the next question is about

    def ask(self, question: str, images: Sequence[Any] = (), *, logprobs: bool = False, **settings: Any) -> Answer:
        """Answer a question about the images and the chat so far, and add both to the chat.

        Args:
          question: its text.
          images: that the question adds to those before; a list of what `load_image` takes.
          logprobs, settings: as in `Generator.generate`.

        Raises:
          ValueError: an argument does not fit, the chat is longer than the generator's `max_length`, or another
            question is being answered.
          ImageError, FileNotFoundError: as `load_image`, with a note of the image's index in the chat.
        """
        stream = self.stream(question, images, logprobs=logprobs, **settings)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    def stream(
        self, question: str, images: Sequence[Any] = (), *, logprobs: bool = False, **settings: Any
    ) -> Stream[str, None, Answer]:
        """Answer a question as `ask` does, and yield the answer's text as it grows, as `Generator.stream` does."""
        before = self.chat
        chat, request = self._read(question, images, settings)

        def pieces() -> Stream[str, None, Answer]:
            if self.chat is not before:
                raise ValueError("The chat has gone on since this stream was made: make a stream when it is read.")
            sizes = [source.content.shape for source in request.sources[len(self._sizes) :]]
            yield from self._answer(request)
            answer = request.answer(logprobs)
            self._sizes += sizes
            self._visual_tokens += request.visual_tokens[1:]  # the first are those of the images before
            self._new, self.chat = 0, [*chat, _message("assistant", 0, answer.text)]
            return answer

        return pieces()

    def fork(self) -> "Session":
        """Return a copy, which goes on by itself; it has a cache of its own.

        Raises:
          ValueError: a question is being answered.
        """
        self._require_idle()
        copy = Session(self._model, dataclasses.replace(self._held, slots=fork(self._held.slots)))
        copy.chat, copy._ids, copy._new = list(self.chat), self._ids, self._new
        copy._sizes, copy._visual_tokens = list(self._sizes), list(self._visual_tokens)
        return copy

    def _require_idle(self) -> None:
        if self._busy:
            raise ValueError("A session answers one question at a time: read the stream to its end, or close it.")

    def _read(
        self, question: str, images: Sequence[Any], settings: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], Request]:
        """Check a question; return the chat with it, and the chat's request, which has the pixels of new images."""
        self._require_idle()
        require_type("question", question, str)
        if is_one_image(images) or not isinstance(images, (Sequence, np.ndarray)):
            raise ValueError(f"images must be a list of images, got {type(images).__name__}: pass [image].")
        chat = [*self.chat, _message("user", self._new + len(images), question)]
        known = [np.broadcast_to(np.uint8(0), size) for size in self._sizes]  # of its pixels, a prompt needs the size
        (request,) = read_requests(self._model, [chat], [*known, *images], settings)
        return chat, request

    def _answer(self, request: Request) -> Iterator[str]:
        """Answer a request for the whole chat, and yield the pieces of the answer's text."""
        self._require_idle()
        if any(array.is_deleted() for array in jax.tree.leaves(self._held.slots)):  # an interrupt came in a move
            self._held, self._ids = new_held_slots(self._held.engine), self._ids[:0]
        self._busy = True
        prompt = request.prompt
        cached = min(_common(prompt, self._ids), len(prompt) - 1)
        self._ids = prompt[:cached]  # until the answer is complete
        request.num_cached_tokens = cached
        request.sources = [Source("tokens", self._tokens_from(cached, prompt)), *request.sources[len(self._sizes) :]]
        try:
            for _, piece in run(self._model, self._held, [request]):
                if piece:
                    yield piece
        finally:
            self._busy = False
        written = np.array(request.ids[:-1], np.int32)
        written[written == self._model.config.image_token_id] = NO_ID
        self._ids = np.concatenate([prompt, written])

    def _tokens_from(self, cached: int, prompt: Int32[np.ndarray, " S"]) -> Float[np.ndarray, "tokens D"]:
        """Return the visual tokens of the images so far that stand behind the first `cached` tokens of a prompt."""
        none = np.zeros((0, self._model.embeddings.shape[1]), np.float32)
        there = int((prompt[:cached] == self._model.config.image_token_id).sum())
        return np.concatenate([none, *self._visual_tokens])[there:]


def begin_session(model: Model, images: Sequence[Any]) -> Session:
    """Begin a chat, and read all of its first prompt that stands before the question; as `Generator.session`."""
    session = Session(model, new_held_slots(model.engines(1)[-1]))
    _, request = session._read("a", images, {"max_new_tokens": 1})
    _, other = session._read("b", [np.broadcast_to(np.uint8(0), one.content.shape) for one in request.sources], {})
    ids = request.prompt[: _common(request.prompt, other.prompt)]
    tokens, _ = model.visual_tokens.of(request.sources)
    if len(ids):
        prefill(model, session._held, 0, ids, tokens, NEUTRAL, ends=False)
    session._ids, session._visual_tokens, session._new = ids, tokens, len(tokens)
    session._sizes = [source.content.shape for source in request.sources]
    return session


def _message(role: str, images: int, text: str) -> dict[str, Any]:
    return {"role": role, "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}


def _common(one: Int32[np.ndarray, " S"], other: Int32[np.ndarray, " T"]) -> int:
    """Return how many ids two texts begin with in common."""
    number = min(len(one), len(other))
    differ = np.flatnonzero(one[:number] != other[:number])
    return int(differ[0]) if len(differ) else number
