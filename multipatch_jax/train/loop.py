"""The training loop around a step: batches by number, metrics as plain dicts, checkpoints, and a stop at nan."""

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
    """Steps from the state's own number up to `num_steps`, and the state that they end with.

    Args:
      train_step: of `make_train_step`; it takes the state given here over.
      batch_at: the batch of a step, a pure function of its number (see `batch_indices`): then a run that is stopped and
        resumed makes the steps of one that was not, bit for bit on a CPU.
      num_steps: of the whole run, those of before included.
      checkpoints: where to save, every `save_every` steps and at the end; all is written when this function returns.
        Only states that finite steps led to, and whose trained params are finite.
      evaluate: metrics to save beside the step's own, by which the best checkpoint may be chosen.
      callback: called with a step's number (the first is 1) and its metrics, as plain numbers, in order. It runs while
        the device works on the next step, save where a checkpoint is due.
      progress: shows a bar with images a second, the time left and the loss.

    Raises:
      CheckpointError: the checkpoints are of later steps than the state, which was not restored from them.
      FloatingPointError: loss, gradients or params of a step are not finite. It names the step and the last checkpoint.
      ValueError: `save_every` is no positive number; or no metric is the one that the checkpoints choose the best by,
        told at the first step, unless `evaluate` is what should give it.
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
                finish(*running)  # of the step before: the device is busy with this one
            running = step, metrics, images
            if checkpoints is not None and evaluate is None:
                checkpoints.require_best(metrics)  # now, rather than when the first is due
            if checkpoints is not None and (step % save_every == 0 or step == num_steps):
                numbers, running = finish(*running), None
                checkpoints.save(state, numbers | (evaluate(state) if evaluate is not None else {}))
        if running is not None:
            finish(*running)
    return state


@contextlib.contextmanager
def _written(checkpoints: TrainCheckpoints | None) -> Iterator[None]:
    """Waits at the end, of whatever kind: a process that ends would break off Orbax's threads."""
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
