"""Choose the examples of each training batch as a pure function of the step number.

The order is shuffled in every epoch and depends only on the seed and the epoch, so that a resumed run needs no saved
position in the data.
"""

import functools

import numpy as np
from jaxtyping import Int

from multipatch_jax.arguments import require_integer, require_positive


def batch_indices(step: int, *, num_examples: int, batch_size: int, seed: int = 0) -> Int[np.ndarray, " B"]:
    """Return the indices of the examples in one step's batch.

    Every epoch shuffles the examples anew and takes each at most once; the last `num_examples % batch_size` of the
    order are left out. On several hosts the result is the global batch: each host loads the examples
    `indices[mp.params.local_rows(batch_size)]`.

    Args:
      step: number of the step, counted from 0 over the whole run, as `fit` passes it to `batch_at`.
      num_examples: size of the data set; indices are 0 to num_examples - 1.
      batch_size: rows of the global batch, B.
      seed: seed of the shuffle.

    Raises:
      ValueError: there are fewer examples than one batch takes, or an argument is no such integer.
    """
    step, seed = require_integer("step", step, 0), require_integer("seed", seed, 0)
    batch_size = require_positive("batch_size", batch_size, "examples")
    num_examples = require_positive("num_examples", num_examples, "examples")
    batches = num_examples // batch_size
    if not batches:
        raise ValueError(f"A batch of {batch_size} needs as many examples, got {num_examples}.")
    epoch, index = divmod(step, batches)
    return _order(num_examples, seed, epoch)[index * batch_size : (index + 1) * batch_size].copy()


@functools.lru_cache(maxsize=2)
def _order(num_examples: int, seed: int, epoch: int) -> Int[np.ndarray, " examples"]:
    # Cached, because shuffling a million examples at every step would cost 60 ms a step.
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
