"""Hugging Face's JSON to our configs and back.

What the files say is read strictly; what they leave out comes from the reference's class defaults.
"""

import copy
import dataclasses
import json

import pytest
from transformers import Idefics3Config
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.checkpoint import config_from_hf, config_to_hf, read_hf_config
from tests.helpers.models import TINY

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


def test_smolvlm_256ms_json_is_its_preset():
    assert config_from_hf(CONFIG, PREPROCESSOR) == mp.presets.SMOLVLM_256M


def test_the_sparse_json_of_smolvlm2_500m():
    """As on its model card: layers, MLP width and eps come from the reference's class defaults."""
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": 49190,
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": 4,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 64,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "num_attention_heads": 15,
            "num_hidden_layers": 32,
            "num_key_value_heads": 5,
            "pad_token_id": 2,
            "pixel_shuffle_factor": 4,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "use_resampler": False,
            "vocab_size": 49280,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.47.1",
        "use_cache": False,
        "use_reentrant_checkpointing": False,
        "vision_config": {
            "hidden_size": 768,
            "image_size": 512,
            "max_image_size": {"longest_edge": 512},
            "model_type": "smolvlm_vision",
            "num_attention_heads": 12,
            "patch_size": 16,
            "size": {"longest_edge": 2048},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": 49280,
    }
    preprocessor = {
        "do_image_splitting": True,
        "image_processor_type": "SmolVLMImageProcessor",
        "max_image_size": {"longest_edge": 512},
        "processor_class": "SmolVLMProcessor",
        "resample": 1,
        "size": {"longest_edge": 2048},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
    }
    assert config_from_hf(config, preprocessor) == mp.PRESETS["SmolVLM2-500M-Video-Instruct"]


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


def test_rope_theta_is_read_from_either_place():
    moved = copy.deepcopy(CONFIG)
    moved["text_config"]["rope_parameters"] = {"rope_theta": moved["text_config"].pop("rope_theta")}
    assert config_from_hf(moved, PREPROCESSOR) == mp.presets.SMOLVLM_256M


def test_the_image_processor_inside_processor_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSOR, "image_seq_len": 64}))
    assert read_hf_config(tmp_path) == mp.presets.SMOLVLM_256M


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        (edited(CONFIG, None, model_type="llava"), PREPROCESSOR, "must be idefics3 or smolvlm, got 'llava'"),
        (edited(CONFIG, "vision_config", hidden_act="relu"), PREPROCESSOR, "hidden_act must be one of .* got 'relu'"),
        (edited(CONFIG, "vision_config", hidden_size=770), PREPROCESSOR, "multiple of num_attention_heads"),
        (edited(CONFIG, "vision_config", patch_size="16"), PREPROCESSOR, "patch_size must be a positive integer"),
        (edited(CONFIG, None, scale_factor=5), PREPROCESSOR, "positive multiple of the connector's scale_factor 5"),
        (edited(CONFIG, None, vision_config=[]), PREPROCESSOR, r"vision_config must be a JSON object, got \[\]"),
        (CONFIG, edited(PREPROCESSOR, None, image_mean=[0.4] * 3), "image_mean must be .* got"),
        (CONFIG, edited(PREPROCESSOR, None, do_normalize=False), "do_normalize must be True"),
        (CONFIG, edited(PREPROCESSOR, None, size={"height": 5, "width": 5}), "size must be .*longest_edge.* got"),
        (CONFIG, edited(PREPROCESSOR, None, resample=0), "resample must be one of"),
    ],
)
def test_what_we_do_not_compute_is_an_error_that_names_the_key(config, preprocessor, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(config, preprocessor)


# ---------------------------------------------------------------------------------------------------------------------
# Our configs to Hugging Face's JSON.


@pytest.mark.parametrize("name", mp.PRESETS)
def test_every_preset_survives_hugging_faces_json(name):
    config, preprocessor = json.loads(json.dumps(config_to_hf(mp.PRESETS[name])))
    assert config_from_hf(config, preprocessor) == mp.PRESETS[name]


def test_policies_of_ours_cannot_be_exported():
    config = dataclasses.replace(TINY, tiling=dataclasses.replace(TINY.tiling, upscale=False))
    with pytest.raises(ValueError, match=r"cannot say .*'upscale': False"):
        config_to_hf(config)


@pytest.mark.parametrize("width", [576, 33, 32, 1])  # Llama's default of 32 heads would make odd ones of these
def test_a_model_without_its_language_model_survives_too(width):
    connector = dataclasses.replace(mp.presets.SMOLVLM_256M.connector, text_hidden_size=width)
    config = dataclasses.replace(mp.presets.SMOLVLM_256M, connector=connector, text=None)
    assert config_from_hf(*json.loads(json.dumps(config_to_hf(config)))) == config


def test_the_reference_reads_a_model_without_its_language_model():
    ours, _ = config_to_hf(dataclasses.replace(mp.presets.SMOLVLM_256M, text=None))
    hf = Idefics3Config.from_dict(ours)  # our own key does not disturb the reference
    assert hf.to_dict()["vision_config"]["hidden_size"] == 768


def test_a_retriever_of_another_size_cannot_be_exported():
    with pytest.raises(ValueError, match=r"cannot say ModelConfig\.embedding_size=64: ColIdefics3 has 128"):
        config_to_hf(dataclasses.replace(TINY, embedding_size=64))


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
def test_the_reference_reads_our_json_as_the_same_model(model_type):
    hf = reference.hf_config(dataclasses.replace(mp.presets.SMOLVLM_2_2B, model_type=model_type))
    assert hf.model_type == model_type
    assert hf.vision_config.intermediate_size == 4304
    assert hf.text_config.rope_parameters["rope_theta"] == 273768.0
    assert hf.scale_factor == 3
