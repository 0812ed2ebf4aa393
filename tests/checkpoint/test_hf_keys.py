"""The keys of the JSON files: what common tools add is known, what is unknown is refused unless it is named."""

import json

import pytest
from transformers import Idefics3Config, SmolVLMConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import multipatch_jax as mp
from multipatch_jax.checkpoint import config_from_hf, config_to_hf, read_hf_config
from multipatch_jax.checkpoint.hf_keys import IGNORED_EVERYWHERE, KEYS
from tests.helpers.models import TINY

# Keys that tools are known to add: (section, key, value).
ADDED = [
    ("config.json", "unsloth_version", "2025.9.1"),
    ("config.json", "unsloth_fixed", True),
    ("config.json", "auto_map", {"AutoModel": "modeling.Model"}),
    ("config.json", "loss_type", "ForCausalLMLoss"),
    ("config.json", "hidden_size", 576),
    ("config.json", "_commit_hash", "0" * 40),
    ("config.json", "_pre_quantization_dtype", "bfloat16"),
    ("config.json: text_config", "neftune_noise_alpha", 5.0),
    ("config.json: text_config", "attn_implementation", "sdpa"),
    ("config.json: vision_config", "torch_dtype", "float16"),
    ("preprocessor_config.json", "_valid_processor_keys", ["images", "do_resize"]),
    ("preprocessor_config.json", "auto_map", {"AutoProcessor": "processing.Processor"}),
    ("preprocessor_config.json", "do_center_crop", False),
    ("preprocessor_config.json", "input_data_format", "channels_first"),
]


def with_key(section, key, value):
    """The two JSON files of the tiny model, with one key more."""
    config, preprocessor = json.loads(json.dumps(config_to_hf(TINY)))
    if section == "preprocessor_config.json":
        preprocessor[key] = value
    else:
        place = section.split(": ")[1:]
        (config[place[0]] if place else config)[key] = value
    return config, preprocessor


@pytest.mark.parametrize(("section", "key", "value"), ADDED)
def test_bookkeeping_of_common_tools_is_ignored(section, key, value):
    assert config_from_hf(*with_key(section, key, value)) == TINY


@pytest.mark.parametrize("section", KEYS)
def test_every_ignored_key_is_ignored(section):
    for key in set(KEYS[section].ignored) | set(IGNORED_EVERYWHERE) - set(KEYS[section].read):
        assert config_from_hf(*with_key(section, key, "anything")) == TINY, key


@pytest.mark.parametrize("section", KEYS)
def test_an_unknown_key_is_refused_unless_it_is_named(section):
    files = with_key(section, "surprise", 1)
    with pytest.raises(
        ValueError, match=rf"^{section} has keys .* may change the result: surprise\. .*ignore_keys=\('surprise',\)"
    ):
        config_from_hf(*files)
    assert config_from_hf(*files, ignore_keys=("surprise",)) == TINY
    assert config_from_hf(*with_key(section, "surprise", None)) == TINY


def test_a_quantised_models_key_is_refused_with_its_reason():
    files = with_key("config.json", "quantization_config", {"load_in_4bit": True})
    with pytest.raises(ValueError, match="has quantization_config: quantised weights are not read: dequantise"):
        config_from_hf(*files)
    assert config_from_hf(*files, ignore_keys=["quantization_config"]) == TINY


@pytest.mark.parametrize(
    ("ignore_keys", "message"),
    [
        ("surprise", r'must be a tuple of keys such as \("key",\), got \'surprise\''),
        ((1,), "must be a tuple of keys"),
        (("image_mean",), "has image_mean, which cannot be ignored"),
        (("patch_size", "x"), "has patch_size, which cannot be ignored"),
    ],
)
def test_wrong_ignore_keys_are_refused(ignore_keys, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(*config_to_hf(TINY), ignore_keys=ignore_keys)


def test_the_keys_of_a_folder_can_be_ignored_too(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"surprise": 1}))
    with pytest.raises(ValueError, match=rf"^{folder}: config\.json has keys"):
        read_hf_config(folder)
    assert read_hf_config(folder, ("surprise",)) == TINY


def test_many_unknown_keys_make_a_short_error():
    config, preprocessor = config_to_hf(TINY)
    with pytest.raises(ValueError, match=r"config\.json has keys") as error:
        config_from_hf(config | {f"key{i}" * 1000: 1 for i in range(1000)}, preprocessor)
    assert len(str(error.value)) < 3000


@pytest.mark.parametrize("kind", [Idefics3Config, SmolVLMConfig])
def test_all_that_the_reference_writes_is_known(kind):
    config = json.loads(kind(vision_config={"image_size": 364, "patch_size": 14}).to_json_string(use_diff=False))
    preprocessor = json.loads(Idefics3ImageProcessorPil().to_json_string())
    assert isinstance(config_from_hf(config, preprocessor), mp.ModelConfig)
