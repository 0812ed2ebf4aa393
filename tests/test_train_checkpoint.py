"""A run that is killed goes on as if it had not been; nothing wrong is resumed, and nothing good is lost."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multipatch_jax as mp
from tests import train_worker

ROOT = Path(__file__).parent.parent


def begin(folder, *options):
    """A run in a process of its own that will die."""
    command = [sys.executable, "-m", "tests.train_worker", str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folder and process of each of the two runs that die, side by side."""
    runs = {}
    for option in ("--die-at", "--die-saving"):
        folder = tmp_path_factory.mktemp(option.strip("-"))
        runs[option] = folder, begin(folder, option, "20")
    yield runs
    for _, run in runs.values():
        run.kill()


@pytest.fixture(scope="module")
def straight(killed, tmp_path_factory):
    """The state after a run of 40 steps that nobody disturbs, made while the others die."""
    first, state = train_worker.run(tmp_path_factory.mktemp("straight"))
    assert first == 0
    return state


@pytest.mark.parametrize(
    ("death", "goes_on"),
    [
        ("--die-at", 20),
        ("--die-saving", 10),  # that save is lost, and nothing else
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(death, goes_on, straight, killed):
    check_goes_on(*killed[death], goes_on, straight)


@pytest.mark.slow
def test_a_run_killed_between_saves_makes_its_steps_again(straight, tmp_path):
    check_goes_on(tmp_path, begin(tmp_path, "--die-at", "27"), 20, straight)


def check_goes_on(folder, run, goes_on, straight):
    output, _ = run.communicate(timeout=250)
    assert run.returncode == -signal.SIGKILL, output
    left = {path.name for path in folder.iterdir()}
    assert ("20" in left) == (goes_on == 20)
    assert ("20" in left) or any(name.startswith("20.") for name in left)  # it died in the middle of writing it
    first, state = train_worker.run(folder)
    assert first == goes_on
    for (path, resumed), expected in zip(leaves(state), jax.tree.leaves(straight._replace(rng=None)), strict=True):
        assert np.array_equal(resumed, expected), path
    left = {path.name for path in folder.iterdir()}
    assert left >= {"20", "30", "40"}
    assert not any("tmp" in name for name in left)


def leaves(state):
    return jax.tree_util.tree_leaves_with_path(state._replace(rng=None))


# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step():
    return mp.train.make_train_step(quiet, optax.sgd(0.05), config=train_worker.CONFIG)


def quiet(params, batch, rng, encode):
    return mp.train.distillation_loss(encode(params, batch["tiles"]), batch["teacher"])


def new_state(optimizer=None, **options):
    return train_worker.new_state(optimizer or optax.sgd(0.05), "connector", **options)


def test_the_newest_and_the_best_stay(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.0}
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, keep_last=2) as checkpoints:
        for number, loss in losses.items():
            checkpoints.save(new_state()._replace(step=jnp.int32(number)), {"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps == [2, 4, 5]
        assert checkpoints.best_step == 2
        assert int(checkpoints.restore(new_state(), checkpoints.best_step).step) == 2
        with pytest.raises(mp.CheckpointError, match=r"no checkpoint of step 3, only of \[2, 4, 5\]"):
            checkpoints.restore(new_state(), 3)
    with mp.train.TrainCheckpoints(
        tmp_path / "up", train_worker.CONFIG, best="accuracy", best_mode="max"
    ) as checkpoints:
        for number, accuracy in ((1, 0.2), (2, 0.9), (3, 0.5)):
            checkpoints.save(new_state()._replace(step=jnp.int32(number)), {"accuracy": accuracy})
        checkpoints.wait()
        assert checkpoints.best_step == 2


def test_a_checkpoint_holds_what_was_saved_though_the_next_step_overwrites_it(tmp_path, step):
    """Steps donate their state, and writing goes on in threads."""
    state = new_state()
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, keep_last=30) as checkpoints:
        kept = {}
        for number in range(1, 9):
            state, metrics = step(state, train_worker.batch_at(number))
            kept[number] = jax.tree.map(np.array, state.params)
            checkpoints.save(state, {"loss": float(metrics["loss"])})
        checkpoints.wait()
        for number, params in kept.items():
            restored = checkpoints.restore(new_state(), number)
            jax.tree.map(np.testing.assert_array_equal, restored.params, params)
            assert jax.random.key_data(restored.rng).tolist() == jax.random.key_data(state.rng).tolist()


def test_params_lie_apart_for_whoever_wants_the_model(tmp_path):
    state = new_state()
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(state._replace(step=jnp.int32(7)), {"loss": 1.0})
    assert {"params", "state", "run", "metrics"} <= {path.name for path in (tmp_path / "7").iterdir()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": dataclasses.replace(train_worker.CONFIG, connector=mp.ConnectorConfig(2, 32))},
            "another config.*connector/text_hidden_size: 24 there, 32 here",
        ),
        ({"optimizer": optax.adam(0.05)}, "another optimizer or trainable"),
        ({"optimizer": optax.chain(optax.sgd(0.05), optax.scale_by_schedule(lambda n: 1.0))}, "another optimizer"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(new_state(), {"loss": 1.0})
    with mp.train.TrainCheckpoints(tmp_path, change.get("config", train_worker.CONFIG)) as checkpoints:
        with pytest.raises(mp.CheckpointError, match=message):
            checkpoints.restore(new_state(**change))
        assert checkpoints.steps == [0]


def test_arrays_of_another_dtype_are_refused(tmp_path):
    """Orbax would round them without a word, and the run would not go on as it was."""
    moments = lambda dtype: optax.sgd(0.05, momentum=0.9, accumulator_dtype=dtype)  # noqa: E731
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(new_state(moments("float32")), {"loss": 1.0})
        with pytest.raises(
            mp.CheckpointError, match=r"(?s)another optimizer.*expected .*'bfloat16'\), found .*float32"
        ):
            checkpoints.restore(new_state(moments("bfloat16")))
        state = new_state(moments("float32"))
        tower = jax.tree.map(lambda x: x.astype("bfloat16"), state.params["vision_model"])
        with pytest.raises(mp.CheckpointError, match=r"(?s)other params.*expected .*'bfloat16'\), found .*float32"):
            checkpoints.restore(state._replace(params=state.params | {"vision_model": tower}))


def test_other_params_are_refused(tmp_path):
    """The same config, with LoRA factors beside it that the saved run did not have."""
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(new_state(), {"loss": 1.0})
        state = new_state()
        more = state._replace(params=mp.params.add_lora(jax.random.key(0), state.params, rank=2))
        with pytest.raises(mp.CheckpointError, match=r"(?s)other params.* - lora/vision_model/.*q_proj/kernel/a"):
            checkpoints.restore(more)


def test_dtype_and_attention_may_change_between_runs(tmp_path):
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(new_state(), {"loss": 1.0})
    other = dataclasses.replace(train_worker.CONFIG, dtype="bfloat16", attention="plain", remat=True)
    with mp.train.TrainCheckpoints(tmp_path, other) as checkpoints:
        checkpoints.restore(new_state())


def test_a_metric_that_is_missing_or_nan_is_never_the_best(tmp_path):
    """It may be missing from checkpoints of a run that chose by another."""
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(new_state(), {"loss": 0.0})
    for best, mode in (("recall", "max"), ("error", "min")):
        with mp.train.TrainCheckpoints(
            tmp_path, train_worker.CONFIG, best=best, best_mode=mode, keep_last=1
        ) as checkpoints:
            first = checkpoints.steps[-1]
            for number, value in ((1, 0.5), (2, np.nan), (3, 0.4 if mode == "max" else 0.6)):
                checkpoints.save(new_state()._replace(step=jnp.int32(first + number)), {best: value})
            checkpoints.wait()
            assert checkpoints.best_step == first + 1


def test_what_would_not_be_saved_is_not_begun(tmp_path, step):
    """Orbax leaves out steps that are not beyond the newest: a run that forgot to restore would lose them."""
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        checkpoints.save(new_state()._replace(step=jnp.int32(3)), {"loss": 0.0})
        with pytest.raises(mp.CheckpointError, match="has a checkpoint of step 3, so step 1 cannot be saved there: re"):
            mp.train.fit(step, new_state(), train_worker.batch_at, num_steps=5, checkpoints=checkpoints)
        with pytest.raises(mp.CheckpointError, match="so step 3 cannot be saved there"):
            checkpoints.save(new_state()._replace(step=jnp.int32(3)), {"loss": 0.0})
        assert checkpoints.steps == [3]


def test_metrics_must_have_the_one_that_chooses(tmp_path):
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, best="recall") as checkpoints:
        with pytest.raises(ValueError, match="chosen by 'recall', got metrics \\['loss'\\]"):
            checkpoints.save(new_state(), {"loss": 1.0})
    with pytest.raises(ValueError, match="best_mode must be"):
        mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, best_mode="most")


@pytest.mark.parametrize("fails", [False, True])
def test_fit_waits_for_what_is_being_written(fails, tmp_path, step):
    """Whoever does not leave the checkpoints by `with` loses none: a process that ends does not wait for Orbax."""

    def batch_at(number):
        if fails and number == 3:
            raise OSError("no more data")
        return train_worker.batch_at(number)

    checkpoints = mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG)
    with pytest.raises(OSError, match="no more data") if fails else contextlib.nullcontext():
        mp.train.fit(step, new_state(), batch_at, num_steps=4 if fails else 3, checkpoints=checkpoints, save_every=3)
    assert (tmp_path / "3").is_dir()


def test_a_metric_that_nothing_gives_is_told_at_the_first_step(tmp_path, step):
    """Not when the first checkpoint is due, a thousand steps on."""
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
    """Loss and gradients are finite, what the optimiser makes of them is not: params tell, not a step later."""
    optimizer = optax.sgd(lambda count: jnp.where(count == 3, jnp.inf, 0.05))
    step = mp.train.make_train_step(quiet, optimizer, config=train_worker.CONFIG)
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        options = {"checkpoints": checkpoints, "save_every": 2}
        with pytest.raises(FloatingPointError, match=r"Step 4 is not finite.* last good checkpoint is of step 2"):
            mp.train.fit(step, new_state(optimizer), train_worker.batch_at, num_steps=6, **options)
        assert checkpoints.steps == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [13, 20])  # between saves, and where one is due
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


def test_it_stops_without_checkpoints_too(step):
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


def test_every_epoch_has_every_example_once_and_an_order_of_its_own():
    batches = [mp.train.batch_indices(step, num_examples=20, batch_size=4, seed=1) for step in range(10)]
    epochs = np.concatenate(batches[:5]), np.concatenate(batches[5:])
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert not np.array_equal(*epochs)
    with pytest.raises(ValueError, match="A batch of 8 needs as many examples, got 7"):
        mp.train.batch_indices(0, num_examples=7, batch_size=8)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_saving_at_no_interval_is_refused_before_the_first_step(every, step):
    with pytest.raises(ValueError, match=f"save_every must be a positive number of steps, got {every}"):
        mp.train.fit(step, new_state(), train_worker.batch_at, num_steps=1, save_every=every)
