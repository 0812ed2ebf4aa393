"""Training on eight devices is training on one; arrays really are split; several processes are one run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import multipatch_jax as mp
from multipatch_jax.params import sharding
from tests import tolerances, train_worker
from tests.test_parity import distance

ROOT = Path(__file__).parent.parent
MESHES = ("8,1,1", "1,8,1", "1,1,4", "2,2,2")
OF_TWO = ("1,8,1", "2,2,2")  # by two processes: tiles shared out by shard_map, and heads split by the compiler


def start(*arguments, devices=8):
    """The worker, in a process that takes its CPU for so many devices."""
    command = [sys.executable, "-m", "tests.mesh_worker", *map(str, arguments)]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"  # compiles faster
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process):
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes that make meshes of all their devices, begun before the runs that they are held against."""
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


def check_like_single(out, name, runs):
    report, params = results(out, name)
    single, expected = results(runs, "single")
    np.testing.assert_allclose(report["losses"], single["losses"], rtol=tolerances.MESH)
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        assert distance(params[path], value) <= tolerances.MESH, path
    before = mp.params.flatten(train_worker.params())
    assert (
        distance(
            expected["vision_model/encoder/layers/mlp/fc1/kernel"], before["vision_model/encoder/layers/mlp/fc1/kernel"]
        )
        > 100 * tolerances.MESH
    )  # five steps do change something


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_gives_the_losses_and_params_of_one_device(name, runs):
    check_like_single(runs, name, runs)


@pytest.mark.parametrize(("name", "share"), [("8,1,1", 1.0), ("1,8,1", 0.16), ("1,1,4", 0.46), ("2,2,2", 0.34)])
def test_params_and_optimiser_state_are_split(name, share, runs):
    """Bytes on each device. Norms and some biases are on all of them, and embeddings on all of `tensor`."""
    report, _ = results(runs, name)
    single, _ = results(runs, "single")
    assert report["layout_kept"]
    for part in ("params", "opt_state"):
        (whole,) = single[part]
        assert len(report[part]) == np.prod([int(side) for side in name.split(",")])
        assert max(report[part]) <= share * whole
        assert min(report[part]) >= whole / len(report[part])


def test_a_step_refuses_a_batch_that_does_not_divide_and_keeps_its_state(runs):
    """Sixteen rows it takes: two pieces on eight devices. The params are looked at after the refusals."""
    report, _ = results(runs, "1,8,1")
    over_devices, over_pieces = report["refused"]
    assert "its first axis must be a multiple of 8 on this host, got an array of shape (12, 4, 24)" in over_devices
    assert over_pieces.endswith("must divide over accumulate=2 pieces x 8 devices of data x fsdp, got 8 rows.")


def test_a_step_takes_the_kernel_where_no_heads_are_split(runs):
    """Lowered for TPUs, whose kernel the compiler cannot split: each device runs it on its own tiles."""
    assert results(runs, "1,8,1")[0]["kernels"] > 0


def test_encoding_with_params_on_a_mesh(runs):
    """Called with split params as with any."""
    assert results(runs, "2,2,2")[0]["tokens_like_one_device"] <= tolerances.SAME_PROGRAM


def test_a_checkpoint_of_a_mesh_is_restored_on_one_device(runs):
    optimizer, trainable = optax.adamw(1e-3), "^(?!.*k_proj/bias)"
    with mp.train.TrainCheckpoints(runs / "2,2,2-run", train_worker.CONFIG) as checkpoints:
        state = checkpoints.restore(train_worker.new_state(optimizer, trainable))
    _, expected = results(runs, "2,2,2")
    for path, value in mp.params.flatten(state.params).items():
        assert np.array_equal(value, expected[path]), path


def test_two_processes_are_one_run(runs, pair):
    """Each with four devices and its own half of every batch; they save one checkpoint between them."""
    out, both = pair
    for process in both:
        finish(process)
    for name in OF_TWO:
        check_like_single(out, name, runs)
        _, together = results(out, name)
        _, alone = results(runs, name)
        for path, value in alone.items():
            assert distance(together[path], value) <= tolerances.SAME_PROGRAM, (name, path)
        with mp.train.TrainCheckpoints(out / f"{name}-run", train_worker.CONFIG) as checkpoints:
            state = checkpoints.restore(train_worker.new_state(optax.adamw(1e-3), "^(?!.*k_proj/bias)"))
        for path, value in mp.params.flatten(state.params).items():
            assert np.array_equal(value, together[path]), (name, path)


# ---------------------------------------------------------------------------------------------------------------------
# Rules and errors; they look at names and shapes only, so a mesh of made-up devices does.


@pytest.fixture(scope="module")
def mesh():
    """A mesh over devices that nobody has: 2 x 4 x 2."""
    return jax.sharding.AbstractMesh((2, 4, 2), sharding.AXES)


def test_every_large_array_of_every_member_is_split(mesh):
    for name, config in mp.PRESETS.items():
        for path, shape in mp.params.param_shapes(config, ("vision", "connector")).items():
            spec = sharding.spec_for(path, shape, mesh)
            if np.prod(shape) > 100_000 and "bias" not in path:
                assert "fsdp" in str(spec), (name, path, shape)


def test_the_first_rule_found_decides(mesh):
    rules = ((r"layers/mlp", P(None, "tensor")), (r"mlp/fc1", P("data")), (r"kernel$", P(None, None, "fsdp")))
    assert sharding.spec_for("encoder/layers/mlp/fc1/kernel", (2, 8, 8), mesh, rules) == P(None, "tensor")
    assert sharding.spec_for("encoder/layers/q_proj/kernel", (2, 8, 8), mesh, rules) == P(None, None, "fsdp")
    assert sharding.spec_for("encoder/layers/q_proj/bias", (2, 8), mesh, rules) == P()


def test_what_does_not_divide_is_not_split(mesh):
    path = "vision_model/encoder/layers/mlp/fc1/kernel"
    assert sharding.spec_for(path, (2, 8, 8), mesh) == P(None, "fsdp", "tensor")
    assert sharding.spec_for(path, (2, 6, 8), mesh) == P(None, None, "tensor")
    assert sharding.spec_for(path, (2, 6, 7), mesh) == P(None, None, None)
    assert sharding.spec_for(path, (), mesh) == P()  # an optimiser's own number


def test_a_mesh_that_there_are_no_devices_for():
    with pytest.raises(ValueError, match="data=2, fsdp=4, tensor=1 needs 8 devices, got 1"):
        mp.params.make_mesh(data=2, fsdp=4)


def test_a_batch_that_does_not_divide_over_the_mesh(mesh):
    class Mesh:  # of eight devices of this host
        shape = mesh.shape
        devices = np.array(jax.devices() * 16)

    with pytest.raises(ValueError, match=r"8 devices of data x fsdp, .* multiple of 8 on this host, got .*\(12, 3\)"):
        mp.params.shard_batch({"tiles": np.zeros((12, 3))}, Mesh)


def test_heads_of_a_users_own_are_gathered_in_their_own_dtype():
    """The tower's kernels travel as they are used; what else is in params is for the loss to round."""
    kernel = np.ones((2, 4), np.float32)
    params = {"connector": {"kernel": kernel, "bias": kernel}, "head": {"kernel": kernel}}
    gathered = jax.jit(lambda params: sharding.gather(params, mp.params.make_mesh(), dtype="bfloat16"))(params)
    found = {path: x.dtype.name for path, x in mp.params.flatten(gathered).items()}
    assert found == {"connector/kernel": "bfloat16", "connector/bias": "float32", "head/kernel": "float32"}


def test_hosts_get_equal_pieces(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert mp.params.local_rows(12) == slice(6, 9)
    with pytest.raises(ValueError, match="divide over the 4 hosts, got batch_size=10"):
        mp.params.local_rows(10)
