"""Run a train step in a loop: fetch batches by number, report metrics, save checkpoints, and stop at nan or inf."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from multipatch_jax.arguments import require_positive
from multipatch_jax.train.checkpoints import TrainCheckpoints
from multipatch_jax.train.step import TrainState

Metrics = dict[str, float]


def fit(
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    batch_at: Callable[[int], Any],
    *,
    num_steps: int,
    checkpoints: TrainCheckpoints | None = None,
    save_every: int = 1000,
    evaluate: Callable[[TrainState], Metrics] | None = None,
    callback: Callable[[int, Metrics], None] | None = None,
    progress: bool = False,
) -> TrainState:
    """Train from the state's own step up to step `num_steps`, and return the final state.

    Args:
      train_step: the function that `make_train_step` returned.
      state: the state to start from. Its arrays are donated to the first step, so use only the returned state
        afterwards. A state that has already made `num_steps` steps is returned unchanged.
      batch_at: returns the batch of a step. The number passed to it counts from 0 over the whole run. Make it a pure
        function of this number (see `batch_indices`): a resumed run then makes the same steps as an uninterrupted one,
        bit for bit on a CPU.
      num_steps: steps of the whole run, including those made before a resume.
      checkpoints: where to save the state, every `save_every` steps and after the last one. A state is saved only if
        loss, gradient norm and the norm of the trained params were finite in its step and in all steps before. When
        `fit` returns or raises, everything saved is on the disk.
      save_every: steps between two checkpoints.
      evaluate: called with the state before each save; the metrics that it returns are saved beside the step's own, and
        may decide which checkpoint is the best. Without `checkpoints` it is not called.
      callback: called in order with the number of each finished step, counted from 1, and its metrics as plain numbers.
        It runs while the device computes the next step, except at a step whose state is saved.
      progress: whether to show a bar with images per second, the time left and the loss.

    Raises:
      CheckpointError: the folder of `checkpoints` has a later step than `state`: the state was not restored from it.
      FloatingPointError: a metric of a step (loss, gradient norm, norm of the trained params) is nan or inf. The error
        names the step and the last checkpoint.
      ValueError: `save_every` is not a positive integer, or the metric that decides the best checkpoint is missing. The
        latter is found at the first step, or with `evaluate` at the first save.
    """
    save_every = require_positive("save_every", save_every, "steps")
    first, start = int(state.step), time.perf_counter()
    if checkpoints is not None:
        checkpoints.require_newest(first)
    bar, running = tqdm(total=num_steps, initial=first, unit="step", disable=not progress), None

    def finish(step: int, metrics: dict[str, jax.Array], images: int) -> Metrics:
        numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(map(math.isfinite, numbers.values())):
            shown = ", ".join(f"{name} {value}" for name, value in numbers.items())
            raise FloatingPointError(f"Step {step} is not finite ({shown}), so training stops. {_last(checkpoints)}")
        bar.update()
        rate = images * (step - first) / (time.perf_counter() - start)
        bar.set_postfix({"loss": f"{numbers['loss']:.4g}", "images/s": f"{rate:.1f}"}, refresh=False)
        if callback is not None:
            callback(step, numbers)
        return numbers

    with bar, _written(checkpoints):
        for step in range(first + 1, num_steps + 1):
            batch = batch_at(step - 1)
            images = len(jax.tree.leaves(batch)[0]) * jax.process_count()
            state, metrics = train_step(state, batch)
            if running is not None:
                finish(*running)  # the previous step's, while the device computes this one
            running = step, metrics, images
            if checkpoints is not None and evaluate is None:
                checkpoints.require_best(metrics)  # at step 1, not only at the first save
            if checkpoints is not None and (step % save_every == 0 or step == num_steps):
                numbers, running = finish(*running), None
                checkpoints.save(state, numbers | (evaluate(state) if evaluate is not None else {}))
        if running is not None:
            finish(*running)
    return state


@contextlib.contextmanager
def _written(checkpoints: TrainCheckpoints | None) -> Iterator[None]:
    """Wait for the checkpoints to be written when the block ends, also by an exception.

    A process that exits earlier would kill the threads in which Orbax writes.
    """
    try:
        yield
    finally:
        if checkpoints is not None:
            checkpoints.wait()


def _last(checkpoints: TrainCheckpoints | None) -> str:
    if checkpoints is None:
        return "No checkpoints were kept."
    checkpoints.wait()
    steps = checkpoints.steps
    if not steps:
        return "No checkpoint was saved yet."
    return f"The last good checkpoint is of step {steps[-1]}, in {checkpoints.folder}."
