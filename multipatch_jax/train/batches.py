"""BATCHES"""

import functools

import numpy as np
from jaxtyping import Int


def batch_indices(step: int, *, num_examples: int, batch_size: int, seed: int = 0) -> Int[np.ndarray, " B"]:
    """Which examples the batch of a step has: shuffled anew every epoch, the remainder of an epoch left out.

    A pure function of the step, so that a resumed run goes on with the very batch that it was stopped before, and
    nothing about the data's position has to be saved. On several hosts each takes `[local_rows(batch_size)]` of it.

    Raises:
      ValueError: there are fewer examples than one batch takes.
    """
    batches = num_examples // batch_size
    if not batches:
        raise ValueError(f"A batch of {batch_size} needs as many examples, got {num_examples}.")
    epoch, index = divmod(step, batches)
    return _order(num_examples, seed, epoch)[index * batch_size : (index + 1) * batch_size].copy()


@functools.lru_cache(maxsize=2)
def _order(num_examples: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    # Kept for the epoch: a million examples take 60 ms to shuffle.
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
