"""Exports on the base of another folder: what was exported is what is described, for us and for transformers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import multipatch_jax as mp
from multipatch_jax.checkpoint.side_files import holds_weights
from tests.checkpoint.test_export_hf import load_with_transformers
from tests.helpers.checkpoints import ALL, assert_same_files, assert_same_params
from tests.helpers.models import TINY_SMOLVLM, make_model
from tests.helpers.text import reference_processor
from tests.helpers.tokenizer import cached_tokenizer

EXTRA = {"bos_token_id": 1, "eos_token_id": 49279, "_name_or_path": "somewhere", "unsloth_version": "1"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model's folder as transformers writes it, with what trainers and exporters leave beside it."""
    folder = tmp_path_factory.mktemp("base") / "base"
    model = make_model(TINY_SMOLVLM, folder)
    processor = reference_processor(cached_tokenizer(), model.config)[0]
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= EXTRA | {"torch_dtype": "float32"}
    config["text_config"] |= {"neftune_noise_alpha": 5.0, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(preprocessor_of(folder) | {"video_sampling": {"fps": 1}})
    )
    for name in ("pytorch_model.bin", "model.gguf", "optimizer.pt", "pytorch_model.bin.index.json", "old.safetensors"):
        (folder / name).write_bytes(b"stale")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"stale")
    (folder / "README.md").write_text("about")
    return folder


def preprocessor_of(folder):
    file = folder / "preprocessor_config.json"
    content = json.loads((file if file.is_file() else folder / "processor_config.json").read_text())
    return content.get("image_processor", content)


def changed(config):
    """Another tiling, tokens of a tile, eps and width: nothing that changes a shape, except the text's."""
    tiling = dataclasses.replace(config.tiling, longest_edge=128, tile_size=32, tokens_per_tile=1, filter="bilinear")
    vision = dataclasses.replace(config.vision, layer_norm_eps=1e-3)
    text = dataclasses.replace(config.text, rope_theta=5000.0, rms_norm_eps=1e-4)
    return dataclasses.replace(config, tiling=tiling, vision=vision, text=text)


def test_what_was_exported_is_described(base, tmp_path):
    config, params = mp.from_pretrained(base)
    new = changed(config)
    mp.export_hf(tmp_path / "new", new, params, base=base)
    loaded, again = mp.from_pretrained(tmp_path / "new", parts=ALL)
    assert loaded == new
    assert_same_params(again, mp.from_pretrained(base, parts=ALL)[1])

    model = load_with_transformers(tmp_path / "new")
    assert model.config.vision_config.layer_norm_eps == 1e-3
    assert model.config.text_config.rms_norm_eps == 1e-4
    assert model.config.text_config.rope_parameters["rope_theta"] == 5000.0
    processor = AutoProcessor.from_pretrained(tmp_path / "new")
    assert processor.image_processor.size == {"longest_edge": 128}
    assert processor.image_processor.max_image_size == {"longest_edge": 32}
    assert processor.image_processor.resample == 2
    assert processor.image_seq_len == 1


def test_what_we_do_not_read_is_kept(base, tmp_path):
    config, params = mp.from_pretrained(base)
    mp.export_hf(tmp_path / "new", changed(config), params, base=base)
    top = json.loads((tmp_path / "new" / "config.json").read_text())
    assert EXTRA.items() <= top.items()
    assert top["text_config"]["neftune_noise_alpha"] == 5.0
    assert preprocessor_of(tmp_path / "new")["video_sampling"] == {"fps": 1}
    assert (tmp_path / "new" / "README.md").read_text() == "about"
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_the_same_config_gives_the_same_description(base, tmp_path):
    config, params = mp.from_pretrained(base)
    mp.export_hf(tmp_path / "new", config, params, base=base)
    assert_same_files(base, tmp_path / "new")
    theirs, ours = (AutoConfig.from_pretrained(folder).to_dict() for folder in (base, tmp_path / "new"))
    assert {k for k, v in theirs.items() if v != ours[k]} <= {"_name_or_path"}


def test_stale_weights_stay_behind(base, tmp_path):
    config, params = mp.from_pretrained(base)
    mp.export_hf(tmp_path / "new", config, params, base=base)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert {name for name in names if holds_weights(name)} == {"model.safetensors"}
    assert "onnx" not in names
    assert not any(path.read_bytes() == b"stale" for path in (tmp_path / "new").iterdir())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_tensors_are_written_in_the_dtype_asked_for(dtype, base, tmp_path):
    config, params = mp.from_pretrained(base)
    mp.export_hf(tmp_path / "new", config, params, base=base, dtype=dtype)
    _, loaded = mp.from_pretrained(tmp_path / "new", parts=ALL)
    assert_same_params(loaded, mp.from_pretrained(base, parts=ALL, dtype=dtype)[1])
    top = json.loads((tmp_path / "new" / "config.json").read_text())
    for section in (top, top["text_config"], top["vision_config"]):
        assert {section.get("dtype", dtype), section.get("torch_dtype", dtype)} == {dtype}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "new")
    assert str(model.dtype) == f"torch.{dtype}"


def test_a_saved_base_gives_the_parts_that_it_holds(base, tmp_path):
    config, whole = mp.from_pretrained(base, parts=ALL)
    mp.save_pretrained(tmp_path / "saved", config, whole, base=base)
    _, tower = mp.from_pretrained(tmp_path / "saved", parts="vision")
    mp.export_hf(tmp_path / "new", config, tower, base=tmp_path / "saved")
    assert_same_files(base, tmp_path / "new")
    load_with_transformers(tmp_path / "new")
    AutoProcessor.from_pretrained(tmp_path / "new")


def test_a_base_of_another_kind_is_refused(base, tiny, tmp_path):
    (tmp_path / "other").mkdir()
    for content, message in (
        ({"model_type": "llava"}, "with llava"),
        ({"type": "smolvla", "vlm_model_name": "a"}, "with smolvla"),
        ({}, "with None"),
    ):
        (tmp_path / "other" / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"base must be a Hugging Face or saved folder of the same .*{message}"):
            mp.export_hf(tmp_path / "new", tiny.config, tiny.params, base=tmp_path / "other")
    without = dataclasses.replace(tiny.config, text=None)
    with pytest.raises(ValueError, match=r"config\.text is None, so the language model of .* would be left out"):
        mp.export_hf(tmp_path / "new", without, tiny.params, base=tiny.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


DAMAGED = {
    "config.json": '{"model_type": "smolvlm", "text_config": 5, "vision_config": []}',
    "preprocessor_config.json": '{"size": 5, "resample": "x"}',
    "processor_config.json": '{"image_processor": 5}',
}


@pytest.mark.parametrize("file", DAMAGED)
def test_a_base_with_damaged_settings_is_refused_or_set_right(file, base, tmp_path):
    config, params = mp.from_pretrained(base, parts=ALL)
    spoiled = shutil.copytree(base, tmp_path / "spoiled")
    for content in ("[]", "{"):
        (spoiled / file).write_text(content)
        with pytest.raises(ValueError, match=file):
            mp.export_hf(tmp_path / "new", config, params, base=spoiled)
        assert not (tmp_path / "new").exists()
    (spoiled / file).write_text(DAMAGED[file])
    mp.export_hf(tmp_path / "new", config, params, base=spoiled)
    assert mp.from_pretrained(tmp_path / "new")[0] == config


def test_shards_and_a_quantised_bases_settings_stay_behind(base, tmp_path):
    config, params = mp.from_pretrained(base, parts=ALL)
    sharded = shutil.copytree(base, tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    save_file(tensors, sharded / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    _, tower = mp.from_pretrained(sharded)
    mp.export_hf(tmp_path / "new", config, tower, base=sharded)
    assert_same_files(base, tmp_path / "new")
    assert not (tmp_path / "new" / "model.safetensors.index.json").exists()

    top = json.loads((sharded / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    (sharded / "config.json").write_text(json.dumps(top))
    mp.export_hf(tmp_path / "whole", config, params, base=sharded)
    assert mp.from_pretrained(tmp_path / "whole")[0] == config


def test_mixed_dtypes_are_not_described_as_one(base, tmp_path):
    config, params = mp.from_pretrained(base)
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    mp.export_hf(tmp_path / "new", config, half, base=base)
    top = json.loads((tmp_path / "new" / "config.json").read_text())
    assert top.get("dtype") is None
    assert top.get("torch_dtype") is None
