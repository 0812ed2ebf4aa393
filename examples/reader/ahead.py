"""Make batches ahead of the training, in processes of their own, so that an accelerator does not wait for pages."""

import collections
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

Batch = Callable[[int], Any]


@contextlib.contextmanager
def made_ahead(batch: Batch, workers: int, num_steps: int) -> Iterator[Batch]:
    """Give a function that returns what `batch` does, for steps that are asked for in their order.

    A batch is a pure function of its step, so it is the same whichever process makes it.

    Args:
      batch: can be pickled.
      workers: number of processes; 0 makes a batch when it is asked for.
      num_steps: no batch is made for a step from here on.
    """
    if not workers:
        yield batch
        return
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would not copy
    waiting: collections.deque[tuple[int, Future[Any]]] = collections.deque()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_stay_on_the_cpu) as pool:

        def next_batch(step: int) -> Any:
            first = waiting[-1][0] + 1 if waiting else step
            for ahead in range(first, min(step + 2 * workers, num_steps)):
                waiting.append((ahead, pool.submit(batch, ahead)))
            made, future = waiting.popleft()
            assert made == step, f"Steps are asked for in order: {made} comes next, not {step}."
            return future.result()

        try:
            yield next_batch
        finally:
            pool.shutdown(cancel_futures=True)


def _stay_on_the_cpu() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")
