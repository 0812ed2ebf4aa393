"""Configs: what JSON files say, strictly; what is left out, from the reference's class defaults."""

import copy
import dataclasses
import json

import pytest
from transformers import Idefics3Config
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import multipatch_jax as mp
from multipatch_jax.checkpoint import config_from_hf, read_hf_config
from multipatch_jax.config import config_from_dict

CONFIG = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_token_id": 49190,
    "model_type": "idefics3",
    "scale_factor": 4,
    "text_config": {
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "torch_dtype": "bfloat16",
        "vocab_size": 49280,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "max_image_size": {"longest_edge": 512},
        "model_type": "idefics3",
        "num_attention_heads": 12,
        "patch_size": 16,
        "size": {"longest_edge": 2048},
    },
    "vocab_size": 49280,
}
PREPROCESSOR = {
    "do_image_splitting": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Idefics3ImageProcessor",
    "max_image_size": {"longest_edge": 512},
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 2048},
}


def edited(base, section, **changes):
    changed = copy.deepcopy(base)
    (changed[section] if section else changed).update(changes)
    return changed


def test_smolvlm_256m():
    assert config_from_hf(CONFIG, PREPROCESSOR) == mp.presets.SMOLVLM_256M


def test_sparse_files_are_filled_from_the_references_class_defaults():
    config = config_from_hf(
        {"model_type": "idefics3", "vision_config": {"image_size": 224, "patch_size": 14}},
        {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 224}},
    )
    vision, hf = config.vision, Idefics3VisionConfig()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps"):
        assert getattr(vision, name) == getattr(hf, name)
    top = Idefics3Config()
    assert config.connector.scale_factor == top.scale_factor
    assert config.image_token_id == top.image_token_id
    for name in ("hidden_size", "vocab_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "num_hidden_layers"):
        assert getattr(config.text, name) == getattr(top.text_config, name)


def test_the_image_processors_class_defaults():
    hf = Idefics3ImageProcessorPil()
    config = config_from_hf(
        edited(CONFIG, "vision_config", image_size=364, patch_size=14, num_attention_heads=16) | {"scale_factor": 2}, {}
    )
    assert config.tiling.longest_edge == hf.size["longest_edge"]
    assert config.tiling.tile_size == hf.max_image_size["longest_edge"]
    assert config.tiling.tokens_per_tile == 169


def test_both_homes_of_rope_theta():
    moved = copy.deepcopy(CONFIG)
    moved["text_config"]["rope_parameters"] = {"rope_theta": moved["text_config"].pop("rope_theta")}
    assert config_from_hf(moved, PREPROCESSOR) == mp.presets.SMOLVLM_256M


def test_the_image_processor_inside_processor_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSOR, "image_seq_len": 64}))
    assert read_hf_config(tmp_path) == mp.presets.SMOLVLM_256M


@pytest.mark.parametrize("name", mp.PRESETS)
def test_presets_are_hashable_and_survive_our_json(name):
    config = mp.PRESETS[name]
    assert hash(config) == hash(copy.deepcopy(config))
    assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        (edited(CONFIG, None, new_key=1), PREPROCESSOR, "config.json has keys .* may change the result: new_key"),
        (edited(CONFIG, "vision_config", use_head=True), PREPROCESSOR, "vision_config has keys .*: use_head"),
        (edited(CONFIG, "text_config", sliding=4), PREPROCESSOR, "text_config has keys .*: sliding"),
        (CONFIG, edited(PREPROCESSOR, None, crop=4), "preprocessor_config.json has keys .*: crop"),
        (edited(CONFIG, None, model_type="llava"), PREPROCESSOR, "must be idefics3 or smolvlm, got 'llava'"),
        (edited(CONFIG, "vision_config", hidden_act="relu"), PREPROCESSOR, "hidden_act must be one of .* got 'relu'"),
        (edited(CONFIG, "vision_config", hidden_size=770), PREPROCESSOR, "multiple of num_attention_heads"),
        (edited(CONFIG, "vision_config", patch_size="16"), PREPROCESSOR, "patch_size must be a positive integer"),
        (edited(CONFIG, None, scale_factor=5), PREPROCESSOR, "positive multiple of the connector's scale_factor 5"),
        (edited(CONFIG, None, vision_config=[]), PREPROCESSOR, "must be a JSON object, got list"),
        (CONFIG, edited(PREPROCESSOR, None, image_mean=[0.4] * 3), "image_mean must be .* got"),
        (CONFIG, edited(PREPROCESSOR, None, do_normalize=False), "do_normalize must be True"),
        (CONFIG, edited(PREPROCESSOR, None, size={"height": 5, "width": 5}), "size must be .*longest_edge.* got"),
        (CONFIG, edited(PREPROCESSOR, None, resample=0), "resample must be one of"),
    ],
)
def test_what_we_do_not_compute_is_an_error_that_names_the_key(config, preprocessor, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(config, preprocessor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"longest_edge": 0}, "longest_edge must be a positive integer, got 0"),
        ({"tile_size": 5.5}, "tile_size must be a positive integer, got 5.5"),
        ({"resampler": "opencv"}, "resampler must be one of .* got 'opencv'"),
        ({"filter": "nearest"}, "filter must be one of .* got 'nearest'"),
        ({"max_tiles": 0}, "max_tiles must be a positive integer, got 0"),
        ({"max_tiles": 4, "do_resize": False}, "needs do_resize=True"),
        ({"upscale": "no"}, "upscale must be one of"),
    ],
)
def test_bad_tiling(changes, message):
    with pytest.raises(ValueError, match=message):
        mp.TilingConfig(**changes)


def test_bad_model():
    with pytest.raises(ValueError, match="tokens_per_tile must be 64"):
        dataclasses.replace(mp.presets.SMOLVLM_256M, tiling=mp.TilingConfig(tokens_per_tile=81))
    with pytest.raises(ValueError, match="dtype must be one of"):
        dataclasses.replace(mp.presets.SMOLVLM_256M, dtype="int8")
    with pytest.raises(ValueError, match="precision must be one of"):
        dataclasses.replace(mp.presets.SMOLVLM_256M, precision="best")
    with pytest.raises(ValueError, match="text model's hidden_size"):
        dataclasses.replace(mp.presets.SMOLVLM_256M, connector=mp.ConnectorConfig(4, 960))
    with pytest.raises(ValueError, match="Not a config that this version wrote"):
        config_from_dict({**dataclasses.asdict(mp.presets.SMOLVLM_256M), "colour": 1})
