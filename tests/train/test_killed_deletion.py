"""A run that is killed while it deletes an old checkpoint, and checkpoints that are damaged."""

import contextlib
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from tests.helpers import train_worker
from tests.helpers.processes import run_python
from tests.helpers.training import new_state

DIES = """
import os, sys
import jax.numpy as jnp
import multipatch_jax as mp
from tests.helpers import train_worker
from tests.helpers.training import new_state
unlink, deleted = os.unlink, 0
def dying(path, *, dir_fd=None):
    global deleted
    unlink(path, dir_fd=dir_fd)
    deleted += dir_fd is not None  # as shutil.rmtree calls it
    if deleted == int(sys.argv[2]):
        train_worker.die()
with mp.train.TrainCheckpoints(sys.argv[1], train_worker.CONFIG, keep_last=1) as checkpoints:
    checkpoints.save(new_state()._replace(step=jnp.int32(1)), {"loss": 2.0})
    checkpoints.wait()
    os.unlink = dying
    checkpoints.save(new_state()._replace(step=jnp.int32(2)), {"loss": 1.0})
"""


def open_run(folder, **options):
    return mp.train.TrainCheckpoints(folder, train_worker.CONFIG, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with open_run(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(new_state()._replace(step=jnp.int32(step)), {"loss": 1.0 / step})
    return folder


@pytest.fixture
def spoiled(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.mark.parametrize("deleted_files", [1, 12])
def test_a_kill_in_the_middle_of_a_deletion_leaves_no_half_checkpoint(deleted_files, tmp_path):
    done = run_python("-c", DIES, tmp_path, deleted_files)
    assert done.returncode == -9, done.stderr
    assert len(list(tmp_path.rglob("_METADATA"))) in (2, 3, 4)
    with open_run(tmp_path) as checkpoints:
        assert checkpoints.steps == [2]
        assert checkpoints.best_step == 2
        assert checkpoints.restore(new_state()).step == 2
        with pytest.raises(mp.CheckpointError, match=r"no checkpoint of step 1, only of \[2\]"):
            checkpoints.restore(new_state(), 1)
    assert {path.parent.parent.name for path in tmp_path.rglob("_METADATA")} == {"2"}


def test_nothing_that_was_deleted_is_left(tmp_path):
    with open_run(tmp_path, keep_last=1) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(new_state()._replace(step=jnp.int32(step)), {"loss": 1.0 / step})
        checkpoints.wait()
        assert {path.parent.parent.name for path in tmp_path.rglob("_METADATA")} == {"5"}
    assert not any(path.is_file() for path in (tmp_path / ".deleted").rglob("*"))


@pytest.mark.parametrize(
    "lost",
    [
        ["state"],
        ["run"],
        ["metrics"],
        ["params", "run", "metrics", "_CHECKPOINT_METADATA", "commit_success.txt"],
        ["state/manifest.ocdbt"],
        ["params/_METADATA"],
        ["params", "state", "run", "metrics", "_CHECKPOINT_METADATA", "commit_success.txt"],
    ],
)
def test_the_half_that_an_earlier_version_left_is_deleted_when_the_run_is_opened(lost, spoiled):
    for name in lost:
        path = spoiled / "2" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with open_run(spoiled) as checkpoints:
        assert not (spoiled / "2").exists()
        assert checkpoints.steps == [1]
        state = checkpoints.restore(new_state())
        assert state.step == 1
        checkpoints.save(state._replace(step=jnp.int32(2)), {"loss": 0.1})
        checkpoints.wait()
        assert checkpoints.best_step == 2


def test_what_is_surely_no_checkpoint_of_a_run_is_never_deleted(spoiled):
    """Results of a year, another tool's checkpoints: the run asks for a folder of its own."""
    (spoiled / "2024").mkdir()
    (spoiled / "2024" / "thesis.tex").write_text("mine")
    shutil.rmtree(spoiled / "2" / "state")
    with pytest.raises(mp.CheckpointError, match=r"2024 is no checkpoint of a run.* folder of its own"):
        open_run(spoiled)
    assert (spoiled / "2" / "params").is_dir()
    shutil.rmtree(spoiled / "2024")
    described = json.loads((spoiled / "2" / "_CHECKPOINT_METADATA").read_text())
    del described["item_handlers"]["run"]
    (spoiled / "2" / "_CHECKPOINT_METADATA").write_text(json.dumps(described))
    with pytest.raises(mp.CheckpointError, match="2 is no checkpoint of a run"):
        open_run(spoiled)
    assert (spoiled / "2" / "params").is_dir()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_our_error(data, run, tmp_path_factory):
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("spoiled") / "run"))
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    raw = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, max(len(raw) - 1, 0)))
    if raw and data.draw(st.booleans()):
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(raw)
    elif data.draw(st.booleans()):
        file.write_bytes(raw[:place])
    else:
        file.unlink()
    with warnings.catch_warnings(), contextlib.suppress(mp.CheckpointError):
        warnings.simplefilter("ignore")
        with open_run(folder) as checkpoints:
            state = checkpoints.restore(new_state(), 2)
        assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, new_state().params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_last": -1}, "keep_last must be a positive number of checkpoints, got -1"),
        ({"keep_last": 0}, "keep_last must be a positive number of checkpoints, got 0"),
        ({"keep_last": None}, "keep_last must be a positive number of checkpoints, got None"),
        ({"best": None}, "best must be a str, got None"),
        ({"best_mode": None}, 'best_mode must be "min" or "max", got None'),
    ],
)
def test_misuse_is_refused_and_makes_no_folder(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path / "run", **options)
    with pytest.raises(ValueError, match="folder must be the path of a file or folder, got None"):
        open_run(None)
    with pytest.raises(ValueError, match="config must be a ModelConfig"):
        mp.train.TrainCheckpoints(tmp_path / "run", None)  # type: ignore
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match="run is a file; give the checkpoints a folder"):
        open_run(tmp_path / "run")


def test_what_cannot_be_saved_is_refused(tmp_path):
    state = new_state()
    with open_run(tmp_path) as checkpoints:
        for metrics in ({"loss": "low"}, {"loss": np.zeros(3)}, 5):
            with pytest.raises(ValueError, match="metrics must be a dict from names to numbers"):
                checkpoints.save(state, metrics)  # type: ignore
        jax.tree.leaves(state.params)[0].delete()
        with pytest.raises(ValueError, match="A train step has overwritten this state"):
            checkpoints.save(state, {"loss": 1.0})
        assert checkpoints.steps == []
