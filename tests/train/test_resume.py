"""A run that is killed and started again ends as one that was never killed, bit for bit."""

import signal

import jax
import numpy as np
import pytest

from tests.helpers import train_worker
from tests.helpers.processes import start_python


def begin(folder, *options):
    """Starts a run that will kill itself, in a process of its own."""
    return start_python("-m", "tests.helpers.train_worker", folder, *options)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder and process of each of two runs that kill themselves, at the same time."""
    runs = {}
    for option in ("--die-at", "--die-saving"):
        folder = tmp_path_factory.mktemp(option.strip("-"))
        runs[option] = folder, begin(folder, option, "20")
    yield runs
    for _, run in runs.values():
        run.kill()


@pytest.fixture(scope="module")
def straight(killed, tmp_path_factory):
    """The state after 40 undisturbed steps, made while the other runs die."""
    first, state = train_worker.run(tmp_path_factory.mktemp("straight"))
    assert first == 0
    return state


def leaves(state):
    return jax.tree_util.tree_leaves_with_path(state._replace(rng=None))


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


@pytest.mark.parametrize(
    ("death", "goes_on"),
    [
        ("--die-at", 20),
        ("--die-saving", 10),  # only that save is lost
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(death, goes_on, straight, killed):
    folder, run = killed[death]
    check_goes_on(folder, run, goes_on, straight)


@pytest.mark.slow
def test_a_run_killed_between_saves_makes_its_steps_again(straight, tmp_path):
    check_goes_on(tmp_path, begin(tmp_path, "--die-at", "27"), 20, straight)
