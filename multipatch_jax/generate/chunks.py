"""Cut a prompt into chunks of a few sizes, so that a few programs serve prompts of every length."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int32, UInt32

from multipatch_jax.generate.engine import Chunk
from multipatch_jax.generate.sampling import Sampling

SIZES = (32, 256, 1024)


def chunk_sizes(capacity: int) -> tuple[int, ...]:
    """Return the sizes of chunks, ascending, for slots of so many columns."""
    return tuple(size for size in SIZES if size <= capacity)


def split(length: int, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (start, size) of the chunks of a prompt.

    The last chunk may reach beyond the prompt. A size is taken if the rest of the prompt fills at least half of it.
    """
    chunks, start = [], 0
    while start < length:
        rest = length - start
        size = next((size for size in reversed(sizes) if 2 * rest > size), sizes[0])
        chunks.append((start, size))
        start += size
    return chunks


def prompt_chunks(
    row: int,
    ids: Int32[np.ndarray, " S"],
    places: np.ndarray,
    visual_tokens: Float[np.ndarray, "tokens D"],
    sampling: Sampling,
    allowed: UInt32[np.ndarray, " words"],
    sizes: tuple[int, ...],
) -> Iterator[Chunk]:
    """Yield the chunks of a prompt.

    Args:
      row: the slot.
      ids: of the prompt.
      places: True where visual tokens stand.
      visual_tokens: in the order of their places; as many as there are.
      sampling: of the answer; scalars.
      allowed: as in `Chunk`.
      sizes: of chunks.
    """
    order = np.cumsum(places) - 1
    for start, size in split(len(ids), sizes):
        count = min(size, len(ids) - start)
        here = slice(start, start + count)
        chunk_ids = np.zeros(size, np.int32)
        chunk_ids[:count] = ids[here]
        tokens = np.zeros((size, visual_tokens.shape[1]), visual_tokens.dtype)
        tokens[:count][places[here]] = visual_tokens[order[here][places[here]]]
        slot, first, num_real = (np.array(number, np.int32) for number in (row, start, count))
        last = np.array(start + size >= len(ids))
        yield Chunk(slot, first, num_real, last, chunk_ids, tokens, sampling, allowed)
