"""Checkpoints of the real sizes: a whole one loaded and exported again, memory while loading, shards left unread."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import multipatch_jax as mp
from multipatch_jax.checkpoint import config_to_hf
from tests.helpers.checkpoints import ALL, assert_same_files
from tests.helpers.models import with_layers
from tests.helpers.processes import python_output


def whole_checkpoint(name, folder):
    """All tensors of a preset in bfloat16, language model included. Random bits, written without building a model."""
    config = mp.PRESETS[name]
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.integers(0x3C00, 0x3F80, tensor.shape, np.uint16).view(ml_dtypes.bfloat16)
        for name, tensor in mp.params.tensors(config).items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file, content in zip(("config.json", "preprocessor_config.json"), config_to_hf(config), strict=True):
        (folder / file).write_text(json.dumps(content))
    return config


@pytest.mark.parametrize(
    "name", ["SmolVLM-256M-Instruct", pytest.param("SmolVLM-500M-Instruct", marks=pytest.mark.slow)]
)
def test_a_whole_checkpoint_is_loaded_saved_and_exported_bit_for_bit(name, tmp_path):
    config = whole_checkpoint(name, tmp_path / "theirs")
    loaded, params = mp.from_pretrained(tmp_path / "theirs", parts=ALL)
    assert loaded == config
    mp.save_pretrained(tmp_path / "saved", loaded, params)
    del params
    loaded, params = mp.from_pretrained(tmp_path / "saved", parts=ALL)
    mp.export_hf(tmp_path / "ours", loaded, params)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")


MEASURE = """
import resource, sys
import multipatch_jax as mp, jax
import orbax.checkpoint
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
config, params = mp.from_pretrained(sys.argv[1])
loaded = sum(x.nbytes for x in jax.tree.leaves(params))
print((peak() - before) / loaded)
"""


def test_loading_takes_under_half_again_of_what_is_loaded(tmp_path):
    config = whole_checkpoint("SmolVLM-256M-Instruct", tmp_path / "theirs")
    assert float(python_output("-c", MEASURE, tmp_path / "theirs")) < 1.5
    loaded, params = mp.from_pretrained(tmp_path / "theirs")
    assert loaded == config
    mp.save_pretrained(tmp_path / "saved", loaded, params)
    assert float(python_output("-c", MEASURE, tmp_path / "saved")) < 1.5


def test_8b_shards_of_the_language_model_need_not_exist(tmp_path):
    """The vision part of an 8B-shaped checkpoint, of few layers; the other shards do not exist."""
    config = with_layers(mp.presets.IDEFICS3_8B, 2)
    names = mp.params.tensors(config)
    ours = {name: tensor for name, tensor in names.items() if tensor.part in ("vision", "connector")}
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 99, t.shape, np.uint16).view(ml_dtypes.bfloat16) for name, t in ours.items()}
    save_file(arrays, tmp_path / "model-00001-of-00004.safetensors")
    weight_map = {name: f"model-0000{1 if name in ours else 2 + len(name) % 3}-of-00004.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file, content in zip(("config.json", "preprocessor_config.json"), config_to_hf(config), strict=True):
        (tmp_path / file).write_text(json.dumps(content))
    loaded, params = mp.from_pretrained(tmp_path)
    assert loaded == config
    assert sum(x.nbytes for x in jax.tree.leaves(params)) == sum(x.nbytes for x in arrays.values())
    with pytest.raises(mp.CheckpointError, match="is not a whole safetensors file"):
        mp.from_pretrained(tmp_path, parts="embeddings")
