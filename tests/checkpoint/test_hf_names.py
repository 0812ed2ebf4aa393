"""Layouts of a checkpoint other than today's: other prefixes, older names, and models that contain this one."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import multipatch_jax as mp
from tests.helpers.checkpoints import ALL, assert_same_params


def relaid(tiny, folder, rename, **config):
    """The tiny checkpoint with its tensors renamed, and keys of its config.json replaced."""
    folder.mkdir()
    tensors = load_file(tiny.folder / "model.safetensors")
    for file in tiny.folder.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    if config:
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    save_file(rename(tensors), folder / "model.safetensors")
    return folder


def assert_params_of(tiny, params, parts=("vision", "connector")):
    _, expected = mp.from_pretrained(tiny.folder, parts=parts)
    assert_same_params(params, expected)


def test_saved_without_its_head(tiny, tmp_path):
    bare = relaid(
        tiny, tmp_path / "bare", lambda t: {k.removeprefix("model."): v for k, v in t.items() if "lm" not in k}
    )
    assert_params_of(tiny, mp.from_pretrained(bare)[1])


def test_the_first_training_codes_layout(tiny, tmp_path):
    def rename(tensors):
        old = {}
        for name, value in tensors.items():
            name = name.replace("model.connector.modality_projection", "model.modality_projection")
            name = name.replace("model.text_model.", "model.")
            old[name] = value
        table, head = old.pop("model.embed_tokens.weight"), old.pop("lm_head.weight")
        old |= {"model.embed_tokens.weight": table[:150], "lm_head.weight": head[:150]}
        old |= {"model.embed_tokens.additional_embedding.weight": table[150:]}
        old |= {"lm_head.additional_fc.weight": head[150:]}
        old |= {"model.vision_model.head.probe": np.zeros((1, 1, 96), np.float32)}
        return {name: np.ascontiguousarray(value) for name, value in old.items()}

    old = relaid(tiny, tmp_path / "old", rename)
    assert_params_of(tiny, mp.from_pretrained(old, parts=ALL)[1], ALL)


def test_colidefics3(tiny, tmp_path):
    rng = np.random.default_rng(0)
    head = {"linear.weight": rng.normal(size=(128, 48)), "linear.bias": rng.normal(size=128)}

    def rename(tensors):
        del tensors["lm_head.weight"]
        return tensors | {name: value.astype(np.float32) for name, value in head.items()}

    folder = relaid(tiny, tmp_path / "col", rename, architectures=["ColIdefics3"])
    config, params = mp.from_pretrained(folder, parts=ALL)
    assert config.embedding_size == 128
    hidden = rng.normal(size=(2, 7, 48)).astype(np.float32)
    mask = np.ones((2, 7), np.int32)
    mask[1, 4:] = 0
    vectors = mp.nn.retrieval_embeddings(params, hidden, mask)
    expected = hidden @ head["linear.weight"].T + head["linear.bias"]
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True) * mask[..., None]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    assert_params_of(tiny, mp.from_pretrained(folder)[1])


def test_the_tower_inside_smolvla(tmp_path):
    config = dataclasses.replace(mp.PRESETS["SmolVLM2-500M-Video-Instruct"], text=None)
    rng = np.random.default_rng(0)
    prefix = "model.vlm_with_expert.vlm."
    tensors = {
        prefix + name: rng.normal(size=tensor.shape).astype(ml_dtypes.bfloat16)
        for name, tensor in mp.params.tensors(config).items()
    }
    foreign = {
        prefix + "model.text_model.norm.weight": np.ones(960, np.float32),
        prefix + "lm_head.weight": np.ones((4, 960), np.float32),
        "model.vlm_with_expert.lm_expert.norm.weight": np.ones(720, np.float32),
        "model.state_proj.weight": np.ones((960, 32), np.float32),
        "normalize_inputs.buffer_observation_state.mean": np.ones(6, np.float32),
    }
    save_file(tensors | foreign, tmp_path / "model.safetensors")
    policy = {"type": "smolvla", "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "n_obs_steps": 1}
    (tmp_path / "config.json").write_text(json.dumps(policy))
    loaded, params = mp.from_pretrained(tmp_path)
    assert loaded == config
    for name, value in mp.params.from_params(config, params):
        np.testing.assert_array_equal(value, tensors[prefix + name])
    (tmp_path / "config.json").write_text(json.dumps(policy | {"vlm_model_name": "someone/else"}))
    with pytest.raises(ValueError, match=r"vlm_model_name must be one of .* got 'else'"):
        mp.from_pretrained(tmp_path)
