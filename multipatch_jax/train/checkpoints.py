"""Save the checkpoints of a training run, and resume from them, with Orbax's `CheckpointManager`.

Checkpoints are written by threads while training goes on. The newest few and the best one are kept. Each has a folder
named by its step, which gets this name only when all of its content is on the disk, and loses it before any of that is
deleted:
  params: the whole nested dict, which Orbax can restore without the rest.
  state: optimiser state, step, and the random key's data.
  run: JSON of the config and of the structure, shapes and dtypes of params and optimiser state; `restore` checks it.
  metrics: the numbers given to `save`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from multipatch_jax.arguments import require_positive, require_type
from multipatch_jax.checkpoint import CheckpointError
from multipatch_jax.config import ModelConfig, config_from_dict
from multipatch_jax.files import require_path
from multipatch_jax.params import flatten, mismatch_report
from multipatch_jax.train.run_folder import DELETED, clean_run, delete_moved
from multipatch_jax.train.step import TrainState


class TrainCheckpoints:
    """The checkpoints in a folder, as a context manager: on exit it waits until all of them are written.

    Call `restore` before the first step. The same code starts a new run and resumes an old one:

        with mp.train.TrainCheckpoints("run", config) as checkpoints:
            state = checkpoints.restore(mp.train.init_train_state(params, optimizer, rng=jax.random.key(0)))
            state = mp.train.fit(step, state, batch_at, num_steps=1000, checkpoints=checkpoints)
    """

    def __init__(
        self, folder: str | Path, config: ModelConfig, *, keep_last: int = 3, best: str = "loss", best_mode: str = "min"
    ):
        """Open the folder, or create it.

        Args:
          config: the model's config, saved with every checkpoint.
          keep_last: number of newest checkpoints to keep. The best checkpoint is kept as well.
          best: name of the metric that decides which checkpoint is the best. A checkpoint whose metric is missing or
            nan counts as the worst.
          best_mode: "min" or "max".

        Raises:
          ValueError: `best_mode` is neither, `keep_last` is not a positive integer, or another argument is of another
            kind.
          CheckpointError: the folder holds checkpoints that are not of a run, or metrics that cannot be read.
          FileExistsError: `folder` is a file.
        """
        import orbax.checkpoint as ocp  # slow to import, and only needed here
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        self.folder, self._config, self._best = require_path("folder", folder), config, best
        keep_last = require_positive("keep_last", keep_last, "checkpoints")
        if best_mode not in ("min", "max"):
            raise ValueError(f'best_mode must be "min" or "max", got {best_mode!r:.50}.')
        require_type("config", config, ModelConfig)
        require_type("best", best, str)
        if self.folder.is_dir() and jax.process_index() == 0:
            clean_run(self.folder)
        elif self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file; give the checkpoints a folder.")

        worst = math.inf if best_mode == "min" else -math.inf

        def metric(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best, worst)  # an earlier run may have used another metric
            return worst if math.isnan(value) else value

        keep_best = BestN(get_metric_fn=metric, reverse=best_mode == "min", n=1)
        options = ocp.CheckpointManagerOptions(
            best_fn=metric,
            best_mode=best_mode,
            preservation_policy=AnyPreservationPolicy([LatestN(keep_last), keep_best]),
            cleanup_tmp_directories=True,  # left by a run that was killed while writing
            todelete_subdir=DELETED,  # moved there in one step, and deleted by us
        )
        self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()
        self._delete_moved()

    def _delete_moved(self) -> None:
        if jax.process_index() == 0:
            delete_moved(self.folder)

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order, including one that is still being written."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best metric; None without checkpoints."""
        return self._manager.best_step()

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Save a checkpoint of the state's step.

        The call returns when the arrays are copied, and threads write the copies: the next step may overwrite the
        state.

        Args:
          metrics: plain numbers to save with it, among them the metric that `best` names.

        Raises:
          ValueError: that metric is missing (the checkpoint is written all the same), a metric is no number, or a train
            step has overwritten `state`.
          CheckpointError: the folder already has a checkpoint of this step or of a later one.
        """
        import orbax.checkpoint as ocp

        if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(state)):
            raise ValueError("A train step has overwritten this state: save the one that it returned.")
        numbers = _numbers(metrics)
        self.require_newest(int(state.step) - 1)
        self._delete_moved()
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                state=ocp.args.StandardSave(_rest(state)),
                run=ocp.args.JsonSave(_run(state, self._config)),
            ),
            metrics=numbers,
        )
        self.require_best(metrics)

    def require_best(self, metrics: Mapping[str, Any]) -> None:
        """Raise a ValueError if `metrics` lack the metric that decides which checkpoint is the best."""
        if self._best not in metrics:
            raise ValueError(
                f"The best checkpoint is chosen by {self._best!r}, got metrics {sorted(metrics)}: name one of them as "
                "best=, or let fit's evaluate return it."
            )

    def require_newest(self, step: int) -> None:
        """Raise a CheckpointError if the folder has a checkpoint of a later step than `step`.

        Orbax would silently skip saving the steps up to that checkpoint.
        """
        if self.steps and self.steps[-1] > step:
            raise CheckpointError(
                f"{self.folder} has a checkpoint of step {self.steps[-1]}, so step {step + 1} cannot be saved there: "
                "restore the newest first, or give the run a folder of its own."
            )

    def wait(self) -> None:
        """Wait until all checkpoints are written."""
        self._manager.wait_until_finished()
        self._delete_moved()

    def restore(self, state: TrainState, step: int | None = None) -> TrainState:
        """Return the state saved in a checkpoint, or `state` itself if `step` is None and the folder has none.

        Args:
          state: a new state from `init_train_state`, with the config, optimizer and trainable of the run to resume. The
            restored arrays are laid out over the devices as this state's are.
          step: step of the checkpoint; None takes the newest.

        Raises:
          CheckpointError: there is no checkpoint of this step, it is damaged, or it was saved with another config,
            optimizer or trainable, or with params of other names, shapes or dtypes. No file is changed.
        """
        import orbax.checkpoint as ocp

        if step is None:
            step = self._manager.latest_step()
            if step is None:
                return state
        if step not in self.steps:
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}, only of {self.steps}.")
        where = f"{self.folder}, step {step},"
        found = self._read(where, step, run=ocp.args.JsonRestore())["run"]
        try:
            _check_run(where, _run(state, self._config), found)
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{where} is damaged: its item run is not as it was saved ({error}).") from error
        params, rest = jax.tree.map(ocp.utils.to_shape_dtype_struct, (state.params, _rest(state)))
        items = {"params": ocp.args.StandardRestore(params), "state": ocp.args.StandardRestore(rest)}
        restored = self._read(where, step, **items)
        rest = restored["state"]
        rng = jax.random.wrap_key_data(rest["rng"], impl=jax.random.key_impl(state.rng))
        return TrainState(restored["params"], rest["opt_state"], rest["step"], rng)

    def _read(self, where: str, step: int, **items: Any) -> Any:
        """Read items of a checkpoint; what the library raises for damaged files becomes a CheckpointError."""
        import orbax.checkpoint as ocp

        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
            raise CheckpointError(
                f"{where} is damaged ({reason}): restore another one of {self.steps}, and delete this one's folder."
            ) from error


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in metrics.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError("metrics must be a dict from names to numbers.") from None


def _rest(state: TrainState) -> dict[str, Any]:
    """Return the state without its params, with the random key as the integers that it consists of."""
    return {"opt_state": state.opt_state, "step": state.step, "rng": jax.random.key_data(state.rng)}


def _run(state: TrainState, config: ModelConfig) -> dict[str, Any]:
    """Return, in JSON's types, what a checkpoint must have in common with a run that resumes from it."""
    return {
        "config": dataclasses.asdict(config),
        "optimizer": str(jax.tree.structure(state.opt_state)),
        "params": _shapes(state.params),
        "opt_state": _shapes(state.opt_state),
    }


def _shapes(tree: Any) -> dict[str, list[int | str]]:
    """Return {path: [*shape, dtype]} of a tree. The dtype is compared too, because Orbax would silently cast to it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    path = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {path(keys): [*np.shape(x), str(x.dtype)] for keys, x in leaves}


def _check_run(where: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    # An earlier version's config may have other fields: read it as a config first.
    ours, theirs = (flatten(dataclasses.asdict(config_from_dict(run["config"]))) for run in (expected, found))
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
