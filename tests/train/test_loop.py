"""The loop: what it saves and when, where it stops, and what it reports."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multipatch_jax as mp
from tests.helpers import train_worker
from tests.helpers.training import distill, new_state


def test_fit_refuses_a_folder_with_a_newer_checkpoint(tmp_path, step):
    """Orbax skips steps that are not beyond the newest, so a run that forgot to restore would lose them."""
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(new_state()._replace(step=jnp.int32(3)), {"loss": 0.0})
        with pytest.raises(mp.CheckpointError, match="has a checkpoint of step 3, so step 1 cannot be saved there: re"):
            mp.train.fit(step, new_state(), train_worker.batch_at, num_steps=5, checkpoints=checkpoints)
        with pytest.raises(mp.CheckpointError, match="so step 3 cannot be saved there"):
            checkpoints.save(new_state()._replace(step=jnp.int32(3)), {"loss": 0.0})
        assert checkpoints.steps == [3]


@pytest.mark.parametrize("fails", [False, True])
def test_fit_waits_for_what_is_being_written(fails, tmp_path, step):
    """Without `with`, too: a process that ends does not wait for Orbax."""

    def batch_at(number):
        if fails and number == 3:
            raise OSError("no more data")
        return train_worker.batch_at(number)

    checkpoints = mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG)
    with pytest.raises(OSError, match="no more data") if fails else contextlib.nullcontext():
        mp.train.fit(step, new_state(), batch_at, num_steps=4 if fails else 3, checkpoints=checkpoints, save_every=3)
    assert (tmp_path / "3").is_dir()


def test_a_metric_that_nothing_gives_is_told_at_the_first_step(tmp_path, step):
    """The first checkpoint, where it would show, may be a thousand steps away."""
    seen = []
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, best="recall") as checkpoints:
        options = {"checkpoints": checkpoints, "callback": lambda number, metrics: seen.append(number)}
        with pytest.raises(ValueError, match="chosen by 'recall', got metrics"):
            mp.train.fit(step, new_state(), train_worker.batch_at, num_steps=4, **options)
    assert not seen


def test_a_metric_that_evaluation_does_not_give_loses_no_steps(tmp_path, step):
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, best="recall") as checkpoints:
        options = {"checkpoints": checkpoints, "evaluate": lambda state: {"recal": 1.0}}
        with pytest.raises(ValueError, match=r"chosen by 'recall', got metrics .*'recal'"):
            mp.train.fit(step, new_state(), train_worker.batch_at, num_steps=2, **options)
        assert checkpoints.steps == [2]


def test_an_update_that_is_not_finite_is_not_saved(tmp_path):
    """Loss and gradients are finite, the optimiser's update is not; it is seen in the params of the same step."""
    optimizer = optax.sgd(lambda count: jnp.where(count == 3, jnp.inf, 0.05))
    step = mp.train.make_train_step(distill, optimizer, config=train_worker.CONFIG)
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        options = {"checkpoints": checkpoints, "save_every": 2}
        with pytest.raises(FloatingPointError, match=r"Step 4 is not finite.* last good checkpoint is of step 2"):
            mp.train.fit(step, new_state(optimizer), train_worker.batch_at, num_steps=6, **options)
        assert checkpoints.steps == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [13, 20])  # between saves, and at a step that would be saved
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(bad, at, tmp_path, step):
    def batch_at(number):
        batch = train_worker.batch_at(number)
        return batch | {"teacher": batch["teacher"] * (bad if number == at - 1 else 1)}

    seen = []
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        with pytest.raises(FloatingPointError, match=rf"Step {at} is not finite.*last good .* is of step 10, in"):
            mp.train.fit(
                step,
                new_state(),
                batch_at,
                num_steps=30,
                checkpoints=checkpoints,
                save_every=10,
                callback=lambda number, metrics: seen.append(number),
            )
        assert seen == list(range(1, at))
        assert checkpoints.steps == [10]
        restored = checkpoints.restore(new_state())
    assert int(restored.step) == 10
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(restored.params))


def test_a_loss_that_is_not_finite_stops_a_run_without_checkpoints_too(step):
    def batch_at(number):
        batch = train_worker.batch_at(number)
        return batch | {"teacher": batch["teacher"] * np.inf}

    with pytest.raises(FloatingPointError, match=r"Step 1 is not finite .*loss inf.*No checkpoints were"):
        mp.train.fit(step, new_state(), batch_at, num_steps=3)


def test_metrics_come_as_plain_numbers_in_order_and_the_bar_tells_the_rate(step, capsys):
    seen = []
    mp.train.fit(
        step, new_state(), train_worker.batch_at, num_steps=4, callback=lambda *x: seen.append(x), progress=True
    )
    assert [number for number, _ in seen] == [1, 2, 3, 4]
    for _, metrics in seen:
        assert metrics.keys() == {"loss", "grad_norm", "param_norm"}
        assert all(type(value) is float for value in metrics.values())
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "images/s=" in shown
    assert "loss=" in shown


def test_evaluation_chooses_the_best(tmp_path, step):
    """Metrics of `evaluate` are saved beside the step's own; the best step need not be the last."""
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, best="held_out", best_mode="min") as checkpoints:
        options = {"checkpoints": checkpoints, "save_every": 2}
        evaluate = lambda state: {"held_out": abs(float(state.step) - 4)}  # noqa: E731
        mp.train.fit(step, new_state(), train_worker.batch_at, num_steps=6, evaluate=evaluate, **options)
        checkpoints.wait()
        assert checkpoints.best_step == 4


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_saving_at_no_interval_is_refused_before_the_first_step(every, step):
    with pytest.raises(ValueError, match=f"save_every must be a positive number of steps, got {every}"):
        mp.train.fit(step, new_state(), train_worker.batch_at, num_steps=1, save_every=every)
