"""Layouts of a checkpoint other than today's: other prefixes, older names, and models that contain this one."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import multipatch_jax as mp
from tests.helpers.checkpoints import ALL, assert_same_params, change_tensors
from tests.helpers.layouts import LAYOUTS, Layout, write_layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_loads_as_the_same_model(name, tiny, tmp_path):
    layout = LAYOUTS[name]
    folder = write_layout(tiny.folder, tmp_path / "relaid", layout)
    _, params = mp.from_pretrained(folder, parts=layout.parts)
    _, expected = mp.from_pretrained(tiny.folder, parts=layout.parts)
    assert_same_params(params, expected)


def test_pieces_that_do_not_fit_together_are_refused(tiny, tmp_path):
    folder = write_layout(tiny.folder, tmp_path / "old", LAYOUTS["first training code"])
    for piece in (np.zeros((50, 7), np.float32), np.zeros((), np.float32)):
        change_tensors(folder, lambda t, piece=piece: t.update({"lm_head.additional_fc.weight": piece}))
        with pytest.raises(mp.CheckpointError, match=r"lm_head\.weight: stored in pieces that do not fit toget"):
            mp.from_pretrained(folder, parts=ALL)


def test_pieces_of_two_dtypes_are_joined_in_the_dtype_asked_for(tiny, tmp_path):
    folder = write_layout(tiny.folder, tmp_path / "old", LAYOUTS["first training code"])
    name = "lm_head.additional_fc.weight"
    change_tensors(folder, lambda t: t.update({name: t[name].astype(np.float16)}))
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(ml_dtypes.bfloat16)}))
    _, params = mp.from_pretrained(folder, parts=ALL, dtype="float32")
    assert params["lm_head"]["kernel"].dtype == np.float32


def test_colidefics3(tiny, tmp_path):
    rng = np.random.default_rng(0)
    head = {"linear.weight": rng.normal(size=(128, 48)), "linear.bias": rng.normal(size=128)}

    def relay(tensors):
        del tensors["lm_head.weight"]
        return tensors | {name: value.astype(np.float32) for name, value in head.items()}

    folder = write_layout(tiny.folder, tmp_path / "col", Layout("", relay))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ColIdefics3"]}))
    config, params = mp.from_pretrained(folder, parts=ALL)
    assert config.embedding_size == 128
    hidden = rng.normal(size=(2, 7, 48)).astype(np.float32)
    mask = np.ones((2, 7), np.int32)
    mask[1, 4:] = 0
    vectors = mp.nn.retrieval_embeddings(params, hidden, mask)
    expected = hidden @ head["linear.weight"].T + head["linear.bias"]
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True) * mask[..., None]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    assert_same_params(mp.from_pretrained(folder)[1], tiny.params)


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
