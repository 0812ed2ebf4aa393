"""How params and batches are split: rules and errors.

Rules look at names and shapes, so an abstract mesh will do. `tests/train/test_mesh.py` trains on real ones.
"""

import types
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import multipatch_jax as mp
from multipatch_jax.params import gather_fsdp, sharding


@pytest.fixture(scope="module")
def mesh():
    """An abstract mesh of 2 x 4 x 2 devices."""
    return jax.sharding.AbstractMesh((2, 4, 2), sharding.AXES)


def test_every_large_array_of_every_member_is_split(mesh):
    for name, config in mp.PRESETS.items():
        for path, shape in mp.params.param_shapes(config, mp.params.PARTS).items():
            spec = sharding.spec_for(path, shape, mesh)
            if np.prod(shape) > 100_000 and not path.endswith(("bias", "scale")):
                assert "fsdp" in str(spec), (name, path, shape)


def test_of_two_matmuls_in_a_row_the_first_is_split_by_its_outputs_and_the_second_by_its_inputs(mesh):
    """In the decoder as in the tower, so that one sum over `tensor` follows both; the logits are split by ids."""
    config = mp.PRESETS["SmolVLM-256M-Instruct"]
    shapes = mp.params.param_shapes(config, mp.params.PARTS)
    layers = "text_model/layers"
    for names, spec in (
        (("self_attn/q_proj", "self_attn/v_proj", "mlp/gate_proj", "mlp/up_proj"), P(None, "fsdp", "tensor")),
        (("self_attn/o_proj", "mlp/down_proj"), P(None, "tensor", "fsdp")),
    ):
        for name in names:
            path = f"{layers}/{name}/kernel"
            assert sharding.spec_for(path, shapes[path], mesh) == spec, path
    assert sharding.spec_for("lm_head/kernel", (576, 49280), mesh) == P("fsdp", "tensor")
    path = "text_model/embed_tokens/embedding"
    assert sharding.spec_for(path, shapes[path], mesh) == P("tensor", "fsdp")


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
    assert sharding.spec_for(path, (), mesh) == P()  # a scalar of an optimiser's state


def test_a_mesh_of_too_many_devices_is_refused():
    with pytest.raises(ValueError, match="data=2, fsdp=4, tensor=1 needs 8 devices, got 1"):
        mp.params.make_mesh(data=2, fsdp=4)


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused(mesh):
    of_this_host: Any = types.SimpleNamespace(shape=mesh.shape, devices=np.array(jax.devices() * 16))
    with pytest.raises(ValueError, match=r"8 devices of data x fsdp, .* multiple of 8 on this host, got .*\(12, 3\)"):
        mp.params.shard_batch({"tiles": np.zeros((12, 3))}, of_this_host)


def test_heads_of_a_users_own_are_gathered_in_their_own_dtype():
    """The model's kernels are gathered in the computation's dtype, a user's own params in theirs."""
    kernel = np.ones((2, 4), np.float32)
    params = {"connector": {"kernel": kernel, "bias": kernel}, "head": {"kernel": kernel}}
    params |= {"text_model": {"kernel": kernel, "embedding": kernel, "scale": kernel}, "lm_head": {"kernel": kernel}}
    gathered = jax.jit(lambda params: gather_fsdp(params, mp.params.make_mesh(), dtype="bfloat16"))(params)
    found = {path: x.dtype.name for path, x in mp.params.flatten(gathered).items()}
    halves = {"connector/kernel", "text_model/kernel", "text_model/embedding", "lm_head/kernel"}
    assert {path for path, dtype in found.items() if dtype == "bfloat16"} == halves
    assert found.keys() - halves == {"connector/bias", "head/kernel", "text_model/scale"}


def test_hosts_get_equal_pieces(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert mp.params.local_rows(12) == slice(6, 9)
    with pytest.raises(ValueError, match="divide over the 4 hosts, got batch_size=10"):
        mp.params.local_rows(10)
