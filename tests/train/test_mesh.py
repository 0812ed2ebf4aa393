"""Training on a mesh gives what one device gives; arrays are split; several processes make one run."""

import json
import socket

import numpy as np
import optax
import pytest

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances, train_worker
from tests.helpers.mesh_worker import TRAINABLE
from tests.helpers.processes import many_devices, start_python

MESHES = ("8,1,1", "1,8,1", "1,1,4", "2,2,2")
OF_TWO = ("1,8,1", "2,2,2")  # meshes of two processes: shard_map splits the tiles, or the compiler the heads


def start(*arguments, devices=8):
    """Starts the worker in a process whose CPU is shown as so many devices."""
    changes = many_devices(devices)
    changes["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiles faster
    return start_python("-m", "tests.helpers.mesh_worker", *arguments, changes=changes)


def finish(process):
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes whose devices form one mesh, started before the runs that they are compared with."""
    out = tmp_path_factory.mktemp("pair")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    both = [start(out, *OF_TWO, "--process", index, "--of", 2, "--port", port, devices=4) for index in range(2)]
    yield out, both
    for process in both:
        process.kill()


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory):
    """Folder with the results of five steps on one device and on each mesh."""
    out = tmp_path_factory.mktemp("meshes")
    finish(start(out, "single", *MESHES))
    return out


def results(out, name):
    return json.loads((out / f"{name}.json").read_text()), dict(np.load(out / f"{name}.npz"))


def tokens(out, name, process=0):
    """name -> (tokens encoded on the mesh, tokens encoded on one device)."""
    arrays = dict(np.load(out / f"{name}-tokens-{process}.npz"))
    return {key: (arrays[key], arrays[f"{key} alone"]) for key in arrays if not key.endswith(" alone")}


def check_like_single(out, name, runs, of=train_worker.CONFIG, path="vision_model/encoder/layers/mlp/fc1/kernel"):
    """`path` is that of an array of the config's params that five steps change."""
    report, params = results(out, name)
    single, expected = results(runs, "single")
    np.testing.assert_allclose(report["losses"], single["losses"], rtol=tolerances.MESH)
    assert params.keys() == expected.keys()
    for key, value in expected.items():
        assert distance(params[key], value) <= tolerances.MESH, key
    before = mp.params.flatten(train_worker.params(of))[path]
    assert distance(expected[path], before) > 100 * tolerances.MESH


def check_split(name, share, runs):
    """By the bytes on each device: at most `share` of all, and together at least all."""
    report, _ = results(runs, name)
    single, _ = results(runs, "single")
    assert report["layout_kept"]
    for part in ("params", "opt_state"):
        (whole,) = single[part]
        assert len(report[part]) == np.prod([int(side) for side in name.split(",")])
        assert max(report[part]) <= share * whole
        assert min(report[part]) >= whole / len(report[part])


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_gives_the_losses_and_params_of_one_device(name, runs):
    check_like_single(runs, name, runs)


@pytest.mark.parametrize(("name", "share"), [("8,1,1", 1.0), ("1,8,1", 0.16), ("1,1,4", 0.46), ("2,2,2", 0.34)])
def test_params_and_optimiser_state_are_split(name, share, runs):
    """Norms and some biases are not split, and embeddings not along `tensor`."""
    check_split(name, share, runs)


def test_a_step_refuses_a_batch_that_does_not_divide_and_keeps_its_state(runs):
    """It takes sixteen rows, two pieces on eight devices. The other tests see the params after these refusals."""
    report, _ = results(runs, "1,8,1")
    over_devices, over_pieces = report["refused"]
    assert "its first axis must be a multiple of 8 on this host, got an array of shape (12, 4, 24)" in over_devices
    assert over_pieces.endswith("must divide over accumulate=2 pieces x 8 devices of data x fsdp, got 8 rows.")


def test_a_step_for_tpus_has_their_kernel_where_no_heads_are_split(runs):
    """The compiler cannot split the TPU's kernel, so each device runs it on its own tiles."""
    assert results(runs, "1,8,1")[0]["kernels"] > 0


def test_encoding_with_params_on_a_mesh(runs):
    """Each function that encodes takes them as it takes any params."""
    pairs = tokens(runs, "2,2,2")
    assert pairs.keys() == {"images", "tiles", "image"}
    for name, (on_the_mesh, alone) in pairs.items():
        assert distance(on_the_mesh, alone) <= tolerances.SAME_PROGRAM, name


def test_a_checkpoint_of_a_mesh_is_restored_on_one_device(runs):
    optimizer = optax.adamw(1e-3)
    with mp.train.TrainCheckpoints(runs / "2,2,2-run", train_worker.CONFIG) as checkpoints:
        state = checkpoints.restore(train_worker.new_state(optimizer, TRAINABLE))
    _, expected = results(runs, "2,2,2")
    for path, value in mp.params.flatten(state.params).items():
        assert np.array_equal(value, expected[path]), path


def test_two_processes_are_one_run(runs, pair):
    """Each has four devices and half of every batch; together they save one checkpoint."""
    out, both = pair
    for process in both:
        finish(process)
    for name in OF_TWO:
        check_like_single(out, name, runs)
        for process in range(2):  # each has encoded its own tiles on a mesh of its own devices
            ((on_the_mesh, alone),) = tokens(out, name, process).values()
            assert distance(on_the_mesh, alone) <= tolerances.SAME_PROGRAM, (name, process)
        _, together = results(out, name)
        _, alone = results(runs, name)
        for path, value in alone.items():
            assert distance(together[path], value) <= tolerances.SAME_PROGRAM, (name, path)
        with mp.train.TrainCheckpoints(out / f"{name}-run", train_worker.CONFIG) as checkpoints:
            state = checkpoints.restore(train_worker.new_state(optax.adamw(1e-3), TRAINABLE))
        for path, value in mp.params.flatten(state.params).items():
            assert np.array_equal(value, together[path]), (name, path)
