"""The task "ask": the model's answer to one question about each image."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from multipatch_jax.checkpoint import default_dtype
from multipatch_jax.corpus.job import Job, Loaded, Source
from multipatch_jax.corpus.source import map_ahead
from multipatch_jax.generate import Generator
from multipatch_jax.image import load_image

FIELDS = (
    pa.field("answer", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("num_tokens", pa.int32()),
)
CALL = 4  # chats for each slot in one call of the generator, so that slots seldom wait for the last answer
SLOTS = 1  # of a generator, unless the job says


def chat_about_an_image(prompt: str) -> list[dict[str, Any]]:
    """Return the chat that asks `prompt` about one image."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def chats_of_a_call(job: Job) -> int:
    """Return how many chats one call of the generator answers."""
    return CALL * (job.batch_size or SLOTS)


def load_answers(job: Job) -> Loaded:
    """Prepare the task "ask"."""
    generator = Generator.from_pretrained(
        job.model,
        revision=job.revision,
        dtype=job.dtype or default_dtype(),
        max_length=job.max_length,
        batch_size=job.batch_size or SLOTS,
    )
    generator.warmup()
    chat, together = chat_about_an_image(str(job.prompt)), chats_of_a_call(job)

    def ask(images: list[np.ndarray]) -> list[dict[str, Any] | Exception]:
        """Answer some images; if a call fails, one by one, so that the error is that of its own image."""
        try:
            answers = generator.generate([chat] * len(images), images, **job.settings)
        except ValueError as error:  # such as an image that makes the prompt too long, or logits that are not finite
            return [error] if len(images) == 1 else [ask([image])[0] for image in images]
        return [{"answer": x.text, "finish_reason": x.finish_reason, "num_tokens": len(x.ids)} for x in answers]

    def answer(sources: Iterable[Source]) -> Iterator[dict[str, Any] | Exception]:
        waiting: list[np.ndarray | Exception] = []
        for image in map_ahead(_load, sources):
            waiting.append(image)
            if len(waiting) == together:
                yield from _in_order(waiting, ask)
                waiting = []
        yield from _in_order(waiting, ask)

    return Loaded(FIELDS, answer, lambda found: found["num_tokens"])


def _load(source: Source) -> np.ndarray:
    if isinstance(source, Exception):
        raise source
    return load_image(source)


def _in_order(images: list[np.ndarray | Exception], ask: Any) -> Iterator[dict[str, Any] | Exception]:
    """Yield an answer for each image, and for each error the error itself."""
    good = [image for image in images if not isinstance(image, Exception)]
    answers = iter(ask(good) if good else ())
    for image in images:
        yield image if isinstance(image, Exception) else next(answers)
