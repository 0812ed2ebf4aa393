"""A Hugging Face folder: its shards, and its faults, which are all reported at once and before anything is loaded."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import multipatch_jax as mp
from tests.helpers.checkpoints import ALL, change_tensors


def test_shards_are_read_through_the_index_and_only_where_needed(folder):
    tensors = load_file(folder / "model.safetensors")
    text = {k: v for k, v in tensors.items() if "text_model" in k or "lm_head" in k}
    rest = {k: v for k, v in tensors.items() if k not in text}
    save_file(rest, folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"never opened")
    weight_map = dict.fromkeys(rest, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(text, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    _, params = mp.from_pretrained(folder)
    assert mp.params.flatten(params).keys() == mp.params.param_shapes(mp.from_pretrained(folder)[0]).keys()
    with pytest.raises(mp.CheckpointError, match=r"model-00002-of-00002\.safetensors is not a whole safetensors file"):
        mp.from_pretrained(folder, parts=ALL)
    weight_map["lm_head.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(mp.CheckpointError, match="no safetensors file in its folder"):
        mp.from_pretrained(folder)


def test_missing_unexpected_and_misshaped_tensors_are_told_together(folder):
    def spoil(tensors):
        tensors["model.vision_model.post_layernorm.wieght"] = tensors.pop("model.vision_model.post_layernorm.weight")
        tensors["model.vision_model.embeddings.patch_embedding.bias"] = np.zeros(7, np.float32)
        tensors["model.connector.modality_projection.proj.weight"] = np.zeros((48, 1536), np.int32)

    change_tensors(folder, spoil)
    with pytest.raises(mp.CheckpointError) as error:
        mp.from_pretrained(folder)
    lines = str(error.value).split("\n")[1:]
    assert lines == [
        " - model.vision_model.post_layernorm.weight (96,)"
        " (found the like-named model.vision_model.post_layernorm.wieght)",
        " + model.vision_model.post_layernorm.wieght () (nearest known: model.vision_model.post_layernorm.weight)",
        " ~ model.vision_model.embeddings.patch_embedding.bias: expected (96,), found (7,)",
        " ~ model.connector.modality_projection.proj.weight: expected dtype F32, BF16, F16, found I32",
    ]


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no weights: expected model.safetensors"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "neither multipatch_config.json nor config.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), FileNotFoundError, "has no preprocessor_config.json"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json is not valid JSON"),
        (lambda f: edit_json(f / "config.json", surprise=1), ValueError, "may change the result: surprise"),
        (lambda f: edit_json(f / "config.json", model_type="llava"), ValueError, "got 'llava'"),
        (lambda f: edit_json(f / "config.json", scale_factor=2), ValueError, r"proj.weight: expected \(48, 384\)"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), ValueError, "is not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ValueError, "only pickled weights"),
    ],
)
def test_a_broken_folder_is_refused(spoil, error, message, folder):
    spoil(folder)
    with pytest.raises(error, match=message):
        mp.from_pretrained(folder)


def test_a_broken_folder_of_ours_is_refused(tiny, tmp_path):
    saved = tmp_path / "saved"
    mp.save_pretrained(saved, tiny.config, tiny.params)
    with pytest.raises(mp.CheckpointError, match="lacks embeddings: convert or save the model again"):
        mp.from_pretrained(saved, parts="embeddings")
    shutil.rmtree(saved / "params")
    with pytest.raises(mp.CheckpointError, match="not a checkpoint that Orbax can read"):
        mp.from_pretrained(saved)


def test_nan_is_a_warning_that_names_the_tensor(folder):
    name = "model.vision_model.encoder.layers.1.mlp.fc2.weight"

    def spoil(tensors):
        tensors[name][3, 5] = np.nan

    change_tensors(folder, spoil)
    with pytest.warns(UserWarning, match=rf"model\.safetensors: {name} holds NaN"):
        mp.from_pretrained(folder)
