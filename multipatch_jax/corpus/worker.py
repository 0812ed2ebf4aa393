"""An actor: it loads the model once, and answers the batches of rows that Ray Data gives it."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import pyarrow as pa

from multipatch_jax.corpus.columns import results_table
from multipatch_jax.corpus.job import Job
from multipatch_jax.corpus.source import read_sources
from multipatch_jax.corpus.tasks import TASKS

TRIES = 4  # of a batch: Ray restarts a dead actor without limit
PART = 16  # rows whose results are held as NumPy arrays, before they become a table


class Worker:
    """What Ray Data runs as an actor: a function of a batch of rows of the manifest, with a model loaded before."""

    def __init__(self, job: Job, base: str, device: str, counter: Any):
        """Load the model and compile its programs.

        Args:
          job: what is computed.
          base: the folder that relative paths of the manifest start from.
          device: "cpu", "gpu" or "tpu": what Ray gives this actor, and JAX must compute on.
          counter: the actor that counts for the progress bar (`progress.Counter`).
        """
        self._base, self._counter = base, counter
        self._failure: Exception | None = None
        try:
            if jax.default_backend() != device:
                raise ValueError(
                    f"Ray gives this actor a {device}, and JAX computes on a {jax.default_backend()}: install JAX for "
                    f"it, or hide it from Ray (CUDA_VISIBLE_DEVICES='' hides GPUs)"
                )
            self._loaded = TASKS[job.task].load(job)
        except Exception as error:  # raised by the first batch: Ray prints pages about what is raised here
            self._failure = error

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the results of a batch, some rows at a time and in order."""
        import ray
        from ray.exceptions import RayError

        try:
            yield from self._results(batch.to_pylist())
        except Exception as error:
            with contextlib.suppress(RayError):  # the first error is the one to raise
                ray.get(self._counter.fail.remote(_reason(error)))
            raise

    def _results(self, rows: list[dict[str, Any]]) -> Iterator[pa.Table]:
        import ray

        if self._failure is not None:
            raise self._failure
        tries: Any = ray.get(self._counter.begin.remote(rows[0]["id"]))
        if tries > TRIES:
            raise MemoryError(
                f"{TRIES} actors died with the batch of {len(rows)} images that begins with id {rows[0]['id']}, "
                f"probably for want of memory: use fewer actors, or take the largest images out"
            )
        answers = self._loaded.answer(read_sources(rows, self._base))
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART]
            found = [next(answers) for _ in part]
            errors = [_sentence(one) if isinstance(one, Exception) else None for one in found]
            yield results_table(part, errors, found, self._loaded.fields)
            tokens = sum(self._loaded.count(one) for one in found if not isinstance(one, Exception))
            self._counter.add.remote(len(part), sum(error is not None for error in errors), tokens)
        self._counter.end.remote(rows[0]["id"])


def _reason(error: Exception) -> str:
    """Return why an actor gives up, with what to do where a device has no more memory."""
    said = _sentence(error)
    if "RESOURCE_EXHAUSTED" in said:
        return f"the device is out of memory: use a smaller batch size, or fewer actors ({said:.300})"
    return said if isinstance(error, (ValueError, OSError, MemoryError)) else f"{type(error).__name__}: {said}"


def _sentence(error: Exception) -> str:
    """Return what an error says, in one line, never empty."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename:
        said = f"{said}: {os.fsdecode(error.filename)}"
    return " ".join(said.split()) or type(error).__name__
