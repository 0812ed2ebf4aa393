"""Cut a prompt into chunks of a few sizes, so that a few programs serve prompts of every length."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int32, UInt32

from multipatch_jax.generate.engine import Chunk, Engine
from multipatch_jax.generate.sampling import Sampling, all_ids

SIZES = (32, 256, 1024)
LEAST_LENGTH = 2048  # tokens


def round_length(length: int) -> int:
    """Return a `max_length` for a generator of prompts and answers of at most `length` tokens.

    It is 2048, or a power of two above it, so that few programs serve all lengths.
    """
    return max(LEAST_LENGTH, 2 ** (length - 1).bit_length())


def chunk_sizes(capacity: int) -> tuple[int, ...]:
    """Return the sizes of chunks, ascending, for slots of so many columns."""
    return tuple(size for size in SIZES if size <= capacity)


def split(length: int, sizes: tuple[int, ...], start: int = 0) -> list[tuple[int, int]]:
    """Return (start, size) of the chunks of a prompt of `length` tokens, whose first `start` need none.

    The last chunk may reach beyond the prompt. A size is taken if the rest of the prompt fills at least half of it.
    """
    chunks = []
    while start < length:
        rest = length - start
        size = next((size for size in reversed(sizes) if 2 * rest > size), sizes[0])
        chunks.append((start, size))
        start += size
    return chunks


def prompt_chunks(
    engine: Engine,
    row: int,
    ids: Int32[np.ndarray, " S"],
    visual_tokens: Float[np.ndarray, "tokens D"],
    sampling: Sampling,
    *,
    start: int = 0,
    ends: bool = True,
    allowed: UInt32[np.ndarray, " words"] | None = None,
) -> Iterator[Chunk]:
    """Yield the chunks of a prompt.

    Args:
      engine: of the slots.
      row: the slot.
      ids: of the prompt.
      visual_tokens: in the order of the places of `<image>` ids from `start` on.
      sampling: of the answer; scalars.
      start: tokens of the prompt that the slot holds already.
      ends: whether an answer follows the last chunk.
      allowed: as in `Chunk`; None allows all.
    """
    places = ids == engine.image_token_id
    order = np.cumsum(places[start:]) - 1
    seen = np.zeros(engine.text.vocab_size, bool)
    seen[ids[:start]] = True
    allowed = all_ids(engine.text.vocab_size) if allowed is None else allowed
    for begin, size in split(len(ids), chunk_sizes(engine.capacity), start):
        count = min(size, len(ids) - begin)
        here = slice(begin, begin + count)
        chunk_ids = np.zeros(size, np.int32)
        chunk_ids[:count] = ids[here]
        tokens = np.zeros((size, visual_tokens.shape[1]), visual_tokens.dtype)
        tokens[:count][places[here]] = visual_tokens[order[begin - start :][:count][places[here]]]
        slot, first, num_real = (np.array(number, np.int32) for number in (row, begin, count))
        last = np.array(ends and begin + size >= len(ids))
        seen = seen.copy()
        seen[ids[here]] = True
        yield Chunk(slot, first, num_real, last, chunk_ids, tokens, seen, sampling, allowed)
