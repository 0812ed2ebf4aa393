"""Checkpoints of a training run, by Orbax's `CheckpointManager`: asynchronous, the last few and the best, and resumed.

A step's folder holds `params` (the whole nested dict, for whoever wants the model), `state` (optimiser state, step and
key), `run` (what it was trained with, as JSON) and the metrics. It has its name only once all of it is on the disk.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from multipatch_jax.checkpoint import CheckpointError
from multipatch_jax.config import ModelConfig
from multipatch_jax.params import flatten, mismatch_report
from multipatch_jax.train.step import TrainState


class TrainCheckpoints:
    """The checkpoints in a folder. A context manager: leaving it waits for what is being written.

    `restore` comes before the first step and is the same call in a new run and in one that goes on:

        with mp.train.TrainCheckpoints("run", config) as checkpoints:
            state = checkpoints.restore(mp.train.init_train_state(params, optimizer, rng=jax.random.key(0)))
            state = mp.train.fit(step, state, batch_at, num_steps=1000, checkpoints=checkpoints)
    """

    def __init__(
        self, folder: str | Path, config: ModelConfig, *, keep_last: int = 3, best: str = "loss", best_mode: str = "min"
    ):
        """Opens or makes the folder.

        Args:
          config: of the model, remembered with every checkpoint.
          keep_last: newest checkpoints that stay; the best one stays beside them.
          best: the metric that says which is the best. best_mode: "min" or "max".
        """
        import orbax.checkpoint as ocp  # slow to import, and only needed here
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        if best_mode not in ("min", "max"):
            raise ValueError(f'best_mode must be "min" or "max", got {best_mode!r}.')

        worst = math.inf if best_mode == "min" else -math.inf

        def metric(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best, worst)  # a run before may have chosen by another metric
            return worst if math.isnan(value) else value

        keep_best = BestN(get_metric_fn=metric, reverse=best_mode == "min", n=1)
        options = ocp.CheckpointManagerOptions(
            best_fn=metric,
            best_mode=best_mode,
            preservation_policy=AnyPreservationPolicy([LatestN(keep_last), keep_best]),
            cleanup_tmp_directories=True,  # what a killed run was writing
        )
        self.folder, self._config, self._best = Path(folder), config, best
        self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, the one being written included."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step with the best metric."""
        return self._manager.best_step()

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Writes a checkpoint of the state's step. Returns once the arrays are copied; threads write them.

        Args:
          metrics: plain numbers, with the one that `best` names.

        Raises:
          ValueError: that metric is not there; the checkpoint is written all the same. CheckpointError: the folder has
            this step already, or a later one.
        """
        import orbax.checkpoint as ocp

        self.require_newest(int(state.step) - 1)
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                state=ocp.args.StandardSave(_rest(state)),
                run=ocp.args.JsonSave(_run(state, self._config)),
            ),
            metrics={name: float(value) for name, value in metrics.items()},
        )
        self.require_best(metrics)

    def require_best(self, metrics: Mapping[str, Any]) -> None:
        """Raises a ValueError if the metric that says which checkpoint is the best is not among these."""
        if self._best not in metrics:
            raise ValueError(
                f"The best checkpoint is chosen by {self._best!r}, got metrics {sorted(metrics)}: choose one of them, "
                "or let evaluate give it."
            )

    def require_newest(self, step: int) -> None:
        """Raises a CheckpointError if the folder has a later step than this: Orbax would leave out what comes next."""
        if self.steps and self.steps[-1] > step:
            raise CheckpointError(
                f"{self.folder} has a checkpoint of step {self.steps[-1]}, so step {step + 1} cannot be saved there: "
                "restore the newest first, or give the run a folder of its own."
            )

    def wait(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()

    def restore(self, state: TrainState, step: int | None = None) -> TrainState:
        """The state of a checkpoint, laid out on the devices as the state given; that one itself if there is none.

        Args:
          state: of `init_train_state`, with the same config, optimizer and trainable as the run that goes on.
          step: which; None is the newest.

        Raises:
          CheckpointError: it is of another config or optimiser, or the step is not there. Nothing is changed.
        """
        import orbax.checkpoint as ocp

        if step is None:
            step = self._manager.latest_step()
            if step is None:
                return state
        if step not in self.steps:
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}, only of {self.steps}.")
        found = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        _check_run(f"{self.folder}, step {step},", _run(state, self._config), found)
        params, rest = jax.tree.map(ocp.utils.to_shape_dtype_struct, (state.params, _rest(state)))
        items = {"params": ocp.args.StandardRestore(params), "state": ocp.args.StandardRestore(rest)}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        rest = restored["state"]
        rng = jax.random.wrap_key_data(rest["rng"], impl=jax.random.key_impl(state.rng))
        return TrainState(restored["params"], rest["opt_state"], rest["step"], rng)


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the params. Keys are written as the integers that they are."""
    return {"opt_state": state.opt_state, "step": state.step, "rng": jax.random.key_data(state.rng)}


def _run(state: TrainState, config: ModelConfig) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that goes on from it."""
    model = dataclasses.asdict(config)
    for how in ("dtype", "attention", "precision", "remat"):  # how it is computed may change from run to run
        del model[how]
    return {
        "config": model,
        "optimizer": str(jax.tree.structure(state.opt_state)),
        "params": _shapes(state.params),
        "opt_state": _shapes(state.opt_state),
    }


def _shapes(tree: Any) -> dict[str, list[int | str]]:
    """Path -> sides and dtype: of another dtype, Orbax would round arrays without a word."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    path = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {path(keys): [*np.shape(x), str(x.dtype)] for keys, x in leaves}


def _check_run(where: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    ours, theirs = flatten(expected["config"]), flatten(found["config"])
    changed = [f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in ours | theirs if ours.get(k) != theirs.get(k)]
    if changed:
        raise CheckpointError(f"{where} is of another config, so it cannot be resumed here ({'; '.join(changed)}).")
    report = mismatch_report(*({k: tuple(x) for k, x in run["params"].items()} for run in (expected, found)))
    if report:
        raise CheckpointError(
            f"{where} has other params than this run (- missing, + unexpected, ~ shape or dtype):\n{report}"
        )
    report = mismatch_report(*({k: tuple(x) for k, x in run["opt_state"].items()} for run in (expected, found)))
    if report or expected["optimizer"] != found["optimizer"]:
        raise CheckpointError(
            f"{where} is of another optimizer or trainable, so it cannot be resumed here: give init_train_state those "
            f"of that run, whose optimiser state is {found['optimizer']}" + (f"\n{report}" if report else "")
        )
