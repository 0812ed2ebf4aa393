"""Files to params and back: every tensor, bit for bit, or nothing at all."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import multipatch_jax as mp
from tests.helpers.checkpoints import ALL, assert_same_params, change_tensors
from tests.helpers.processes import many_devices, python_output, run_python


def test_every_tensor_of_the_file_has_its_place_and_goes_back_bit_equal(tiny):
    config, params = mp.from_pretrained(tiny.folder, parts=ALL)
    ours = dict(mp.params.from_params(config, params))
    theirs = load_file(tiny.folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("parts", [("vision",), ("connector",), ("embeddings",), ALL, "vision"])
def test_only_the_asked_parts_are_loaded(parts, tiny, tmp_path):
    config, params = mp.from_pretrained(tiny.folder, parts=parts)
    expected = mp.params.param_shapes(config, mp.params.check_parts(config, parts))
    assert mp.params.flatten(params).keys() == expected.keys()
    _, whole = mp.from_pretrained(tiny.folder, parts=ALL)
    mp.save_pretrained(tmp_path / "whole", config, whole)
    _, again = mp.from_pretrained(tmp_path / "whole", parts=parts)
    assert_same_params(again, params)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_dtypes_are_kept_bit_for_bit(dtype, folder, tmp_path):
    change_tensors(folder, lambda tensors: tensors.update((k, v.astype(dtype)) for k, v in list(tensors.items())))
    config, params = mp.from_pretrained(folder, parts=ALL)
    theirs = load_file(folder / "model.safetensors")
    for name, array in mp.params.from_params(config, params):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, theirs[name])
    mp.save_pretrained(tmp_path / "saved", config, params)
    _, again = mp.from_pretrained(tmp_path / "saved", parts=ALL)
    assert_same_params(again, params)


def test_dtypes_may_be_mixed_between_parameters_but_not_within_one(folder):
    def mix(tensors):
        tensors["model.vision_model.post_layernorm.weight"] = np.float16(
            tensors["model.vision_model.post_layernorm.weight"]
        )

    change_tensors(folder, mix)
    _, params = mp.from_pretrained(folder)
    assert params["vision_model"]["post_layernorm"]["scale"].dtype == np.float16
    assert params["vision_model"]["post_layernorm"]["bias"].dtype == np.float32

    name = "model.vision_model.encoder.layers.1.mlp.fc1.bias"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].astype(np.float16)}))
    with pytest.raises(mp.CheckpointError, match="fc1/bias: its layers have the dtypes F16, F32; pass dtype="):
        mp.from_pretrained(folder)
    _, params = mp.from_pretrained(folder, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_saved_folder_keeps_config_and_policies(tiny, tmp_path):
    config = dataclasses.replace(
        tiny.config, tiling=dataclasses.replace(tiny.config.tiling, upscale=False, max_tiles=5)
    )
    mp.save_pretrained(tmp_path / "saved", config, tiny.params)
    loaded, params = mp.from_pretrained(tmp_path / "saved")
    assert loaded == config
    assert_same_params(params, tiny.params)
    _, half = mp.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    assert_same_params(half, jax.tree.map(lambda x: x.astype("bfloat16"), tiny.params))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_folder_saved_with_any_setting_loads_and_runs_here(tiny, tiny_tiles, tmp_path):
    """How a model is computed is never saved. Earlier versions did, for machines with another kernel too."""
    mp.save_pretrained(tmp_path / "saved", tiny.config, tiny.params)
    file = tmp_path / "saved" / "multipatch_config.json"
    saved = json.loads(file.read_text())
    settings = {"dtype": "float16", "attention": "cudnn", "precision": "high", "remat": True}
    assert not saved.keys() & settings.keys()
    file.write_text(json.dumps(saved | settings))
    (tmp_path / "saved" / "multipatch_digests.json").unlink()
    config, params = mp.from_pretrained(tmp_path / "saved")
    assert config == tiny.config
    tokens = mp.encode_tiles(params, tiny_tiles, config=config)
    np.testing.assert_array_equal(tokens, mp.encode_tiles(tiny.params, tiny_tiles, config=config))


def test_save_refuses_what_it_cannot_finish(tiny, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken exists; delete it or choose another name"):
        mp.save_pretrained(tmp_path / "taken", tiny.config, tiny.params)
    with pytest.raises(ValueError, match="not of this config"):
        mp.save_pretrained(tmp_path / "new", mp.presets.SMOLVLM_256M, tiny.params)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(("parts", "message"), [((), "must name some of"), (("audio",), r"got \('audio',\)")])
def test_parts_that_do_not_exist_are_refused(parts, message, tiny):
    with pytest.raises(ValueError, match=message):
        mp.from_pretrained(tiny.folder, parts=parts)


def test_a_dtype_that_is_no_float_is_refused(tiny):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16 or None, got int8"):
        mp.from_pretrained(tiny.folder, dtype="int8")


RESHARD = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import multipatch_jax as mp
mesh = jax.make_mesh((8,), ("x",))
def split(axis):
    def sharding(path, shape):
        spec = [None] * len(shape)
        if shape[axis] % 8 == 0:
            spec[axis] = "x"
        return NamedSharding(mesh, P(*spec))
    return sharding
config, rows = mp.from_pretrained(sys.argv[1], sharding=split(0))
mp.save_pretrained(sys.argv[2], config, rows)
_, cols = mp.from_pretrained(sys.argv[2], sharding=split(-1))
rows, cols = mp.params.flatten(rows), mp.params.flatten(cols)
for path in rows:
    np.testing.assert_array_equal(rows[path], cols[path])
kernel = cols["connector/modality_projection/proj/kernel"]
print(len(kernel.sharding.device_set), kernel.addressable_shards[0].data.shape)
"""


def test_restored_onto_a_mesh_with_another_layout(tiny, tmp_path):
    output = python_output("-c", RESHARD, tiny.folder, tmp_path / "saved", changes=many_devices(8))
    assert output.strip() == "8 (1536, 6)"


# ---------------------------------------------------------------------------------------------------------------------
# A save that is stopped.


KILLED = """
import os, signal, sys, threading, time
import multipatch_jax as mp
from pathlib import Path
config, params = mp.from_pretrained(sys.argv[1])
target = Path(sys.argv[2])
def kill():
    while not list(target.parent.glob(f".{target.name}.*/params*")):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
for attempt in range(1000):
    mp.save_pretrained(f"{target}" if not attempt else f"{target}{attempt}", config, params)
    if not attempt: print("saved", flush=True)
"""


def test_a_kill_in_the_middle_of_a_save_leaves_no_half_model(tiny, tmp_path):
    old = tmp_path / "old"
    mp.save_pretrained(old, tiny.config, tiny.params)
    done = run_python("-c", KILLED, tiny.folder, tmp_path / "new")
    assert done.returncode == -9, done.stderr
    visible = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    for path in visible:  # whatever has its final name is whole
        assert_same_params(mp.from_pretrained(path)[1], tiny.params)
    assert old in visible
    assert list(tmp_path.glob(".new.*"))  # what was being written still has its temporary name


def test_a_full_disk_leaves_nothing(tiny, tmp_path, monkeypatch):
    """The write of the config, the last one, fails as on a full disk."""

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for save in (mp.save_pretrained, mp.export_hf):
        with pytest.raises(OSError, match="No space left on device"):
            save(tmp_path / "new", tiny.config, tiny.params)
    assert list(tmp_path.iterdir()) == []
