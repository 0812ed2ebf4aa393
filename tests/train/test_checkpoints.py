"""A run's checkpoints: which are kept, what they hold, and that another run's are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multipatch_jax as mp
from multipatch_jax.train import checkpoints as checkpoints_module
from tests.helpers import train_worker
from tests.helpers.training import new_state


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
    """Steps donate their state while threads still write it."""
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


def test_params_are_an_item_of_their_own_in_a_checkpoint(tmp_path):
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
    """Orbax would round them silently, and the run would not go on as it was."""
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


def test_a_run_of_an_earlier_version_is_resumed(tmp_path, monkeypatch):
    """Its config may lack a field that has a default now, and held how the run computed."""
    run = checkpoints_module._run

    def earlier(state, config):
        found = run(state, config)
        found["config"] |= {"dtype": "bfloat16", "attention": "native", "precision": "high", "remat": True}
        del found["config"]["connector"]["kind"]
        return found

    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "_run", earlier)
        checkpoints.save(new_state(), {"loss": 1.0})
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG) as checkpoints:
        assert checkpoints.restore(new_state()).step == 0


def test_a_metric_that_is_missing_or_nan_is_never_the_best(tmp_path):
    """Checkpoints of a run that chose by another metric lack it."""
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


def test_metrics_must_include_the_one_that_chooses_the_best(tmp_path):
    with mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, best="recall") as checkpoints:
        with pytest.raises(ValueError, match="chosen by 'recall', got metrics \\['loss'\\]"):
            checkpoints.save(new_state(), {"loss": 1.0})
    with pytest.raises(ValueError, match="best_mode must be"):
        mp.train.TrainCheckpoints(tmp_path, train_worker.CONFIG, best_mode="most")
