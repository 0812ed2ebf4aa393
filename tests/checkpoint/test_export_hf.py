"""Our params as a Hugging Face folder: bit for bit what the reference saved, and loaded by it again."""

import dataclasses
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText

import multipatch_jax as mp
import multipatch_reference as reference
from tests.helpers.checkpoints import ALL, assert_same_files
from tests.helpers.models import TINY, TINY_TEXT


def load_with_transformers(folder):
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype="auto")
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_loaded_and_exported_bit_for_bit(dtype, model_type, tied, tmp_path):
    text = dataclasses.replace(TINY_TEXT, tie_word_embeddings=tied)
    config = dataclasses.replace(TINY, model_type=model_type, text=text)
    model = reference.reference_model(config)
    model.tie_weights()
    reference.save_checkpoint(model.to(dtype), config, tmp_path / "theirs")
    loaded, params = mp.from_pretrained(tmp_path / "theirs", parts=ALL)
    assert loaded == config
    mp.export_hf(tmp_path / "ours", loaded, params)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")
    again = load_with_transformers(tmp_path / "ours")
    assert again.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_mixed_dtypes_are_loaded_saved_and_exported_bit_for_bit(tiny, tmp_path):
    tensors = load_file(tiny.folder / "model.safetensors")
    mixed = {k: v.astype(ml_dtypes.bfloat16) if "text_model" in k else v for k, v in tensors.items()}
    mixed["model.vision_model.post_layernorm.bias"] = mixed["model.vision_model.post_layernorm.bias"].astype(np.float16)
    (tmp_path / "theirs").mkdir()
    for file in tiny.folder.glob("*.json"):
        (tmp_path / "theirs" / file.name).write_bytes(file.read_bytes())
    save_file(mixed, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    config, params = mp.from_pretrained(tmp_path / "theirs", parts=ALL)
    mp.save_pretrained(tmp_path / "saved", config, params)
    config, params = mp.from_pretrained(tmp_path / "saved", parts=ALL)
    mp.export_hf(tmp_path / "ours", config, params)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")


def test_export_takes_what_is_missing_from_the_base(tiny, tmp_path):
    (tiny.folder / "tokenizer.json").write_text("{}")
    params = jax.tree.map(lambda x: x, tiny.params)
    kernel = params["connector"]["modality_projection"]["proj"]["kernel"]
    params["connector"]["modality_projection"]["proj"]["kernel"] = kernel + 1
    mp.export_hf(tmp_path / "tuned", tiny.config, params, base=tiny.folder)
    (tiny.folder / "tokenizer.json").unlink()
    assert (tmp_path / "tuned" / "tokenizer.json").is_file()
    load_with_transformers(tmp_path / "tuned")
    before, after = load_file(tiny.folder / "model.safetensors"), load_file(tmp_path / "tuned" / "model.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"model.connector.modality_projection.proj.weight"}
