"""The host's loop: prompts into slots, and a token at a time out of them."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int32, UInt32

from multipatch_jax.encode import memory_errors
from multipatch_jax.generate.chunks import prompt_chunks
from multipatch_jax.generate.engine import Engine, Token, admit, release, start, step
from multipatch_jax.generate.model import Model
from multipatch_jax.generate.request import Request
from multipatch_jax.generate.sampling import Sampling, all_ids
from multipatch_jax.generate.slots import Slots


@dataclasses.dataclass
class HeldSlots:
    """Slots between two moves.

    Attributes:
      engine: of the slots.
      slots: the state; each move replaces it.
      every_id: on the device, what a step without any grammar allows.
    """

    engine: Engine
    slots: Slots
    every_id: UInt32[Array, "B words"]


def new_held_slots(engine: Engine) -> HeldSlots:
    """Return slots that hold no chats.

    Raises:
      MemoryError: the device has too little memory for them.
    """
    with _memory_errors(engine):
        every_id = np.tile(all_ids(engine.text.vocab_size), (engine.batch_size, 1))
        return HeldSlots(engine, start(engine=engine), jax.device_put(every_id))


def _memory_errors(engine: Engine) -> contextlib.AbstractContextManager[None]:
    """Turn the error of a move without enough memory into one that says how large the slots are."""
    what = f"chats of up to {engine.capacity} tokens, {engine.batch_size} at a time"
    return memory_errors(what, "lower the generator's batch_size or max_length, or ask for shorter answers")


def run(model: Model, held: HeldSlots, requests: Sequence[Request]) -> Iterator[tuple[Request, str]]:
    """Work through requests, and yield each with its new text, "" included, whenever it has a new token."""
    waiting, running = collections.deque(requests), dict[int, Request]()  # running: by slot
    while waiting or running:
        free = next((row for row in range(held.engine.batch_size) if row not in running), None)
        if waiting and free is not None:
            request = running[free] = waiting.popleft()
            token = _admit(model, held, free, request)
            arrived = [(free, request, 0)]
        else:
            with _memory_errors(held.engine):
                held.slots, token = step(model.decoder, held.slots, _allowed(held, running), engine=held.engine)
            arrived = [(row, request, row) for row, request in running.items()]
        ids, logprobs = jax.device_get(token)
        for row, request, place in arrived:
            yield request, request.take(int(ids[place]), float(logprobs[place]))
            if request.finish_reason is not None:
                held.slots = release(held.slots, np.int32(row))
                del running[row]


def _allowed(held: HeldSlots, running: Mapping[int, Request]) -> UInt32[Array | np.ndarray, "B words"]:
    """Return the ids that the next token of each slot may have."""
    matchers = {row: request.matcher for row, request in running.items() if request.matcher is not None}
    if not matchers:
        return held.every_id
    allowed = np.tile(all_ids(held.engine.text.vocab_size), (held.engine.batch_size, 1))
    for row, matcher in matchers.items():
        allowed[row] = matcher.allowed
    return allowed


def prefill(
    model: Model,
    held: HeldSlots,
    row: int,
    ids: Int32[np.ndarray, " S"],
    visual_tokens: Sequence[Float[np.ndarray, "tokens D"]],
    sampling: Sampling,
    *,
    begin: int = 0,
    ends: bool = True,
    allowed: UInt32[np.ndarray, " words"] | None = None,
) -> Token:
    """Put a prompt into a slot, and return the token that follows it.

    Args:
      model: what answers.
      held: the slots.
      row: the slot.
      ids: of the prompt.
      visual_tokens: of what stands in its places from `begin` on.
      sampling: of the answer.
      begin: tokens of the prompt that the slot holds already, fewer than all.
      ends: whether an answer follows.
      allowed: as in `Chunk`; None allows all.
    """
    table = model.embeddings
    tokens = np.concatenate([np.zeros((0, table.shape[1]), table.dtype), *visual_tokens]).astype(table.dtype)
    token = None
    with _memory_errors(held.engine):
        for chunk in prompt_chunks(held.engine, row, ids, tokens, sampling, start=begin, ends=ends, allowed=allowed):
            first = bool(chunk.start == 0)
            held.slots, token = admit(model.decoder, held.slots, chunk, first=first, engine=held.engine)
        assert token is not None
        return jax.block_until_ready(token)


def _admit(model: Model, held: HeldSlots, row: int, request: Request) -> Token:
    """Encode a request's images, let go of their pixels, and put its prompt into a slot."""
    began = time.perf_counter()
    sources, request.sources = request.sources, []
    request.visual_tokens, request.num_encoded = model.visual_tokens.of(sources)
    encoded = time.perf_counter()
    sampling, cached = request.settings.sampling(), request.num_cached_tokens
    allowed = None if request.matcher is None else request.matcher.allowed
    prompt, tokens = request.prompt, request.visual_tokens
    token = prefill(model, held, row, prompt, tokens, sampling, begin=cached, allowed=allowed)
    request.seconds |= {"encode": encoded - began, "prefill": time.perf_counter() - encoded}
    return token
