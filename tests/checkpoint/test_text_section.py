"""The text_config of config.json: rotary positions and what else the decoder computes with; parts="all"."""

import copy
import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

import multipatch_jax as mp
from multipatch_jax.checkpoint import config_from_hf, config_to_hf
from multipatch_jax.config import RopeConfig, config_from_dict
from tests.helpers.checkpoints import ALL, assert_same_params
from tests.helpers.models import TINY, TINY_TEXT

LLAMA3 = {"factor": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
SCALED = dataclasses.replace(TINY, text=dataclasses.replace(TINY_TEXT, rope_scaling=RopeConfig(**LLAMA3)))


def read(**changes):
    """The config that is read after changes of the text_config; None takes a key away."""
    config, preprocessor = copy.deepcopy(config_to_hf(TINY))
    text = config["text_config"] | changes
    config["text_config"] = {key: value for key, value in text.items() if value is not None}
    return config_from_hf(config, preprocessor)


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_scaling": {}},
        {"rope_scaling": {"type": "default"}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": None, "factor": None, "partial_rotary_factor": 1.0}},
    ],
)
def test_plain_positions(rope):
    assert read(**rope) == TINY


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_parameters": {"rope_type": "default"}},
    ],
)
def test_llama_3s_scaling_is_read_where_either_version_has_it(rope):
    assert read(**rope) == SCALED


def test_as_in_the_reference_the_theta_of_rope_parameters_goes_first_and_the_length_has_a_default():
    keys = {"rope_type": "llama3", "rope_theta": 77.0, **LLAMA3}
    del keys["original_max_position_embeddings"]
    text: Any = read(rope_theta=5.0, max_position_embeddings=512, rope_parameters=keys).text
    hf = AutoConfig.for_model("llama", rope_theta=5.0, max_position_embeddings=512, rope_parameters=dict(keys))
    assert text.rope_theta == hf.rope_parameters["rope_theta"] == 77.0
    found = hf.rope_parameters["original_max_position_embeddings"]
    assert text.rope_scaling.original_max_position_embeddings == found == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: {"rope_type": kind, "factor": 2.0}}, rf"{name} must be of rope_type default or llama3.*'{kind}'")
          for name in ("rope_scaling", "rope_parameters") for kind in ("linear", "dynamic", "yarn", "longrope")),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling must be of rope_type default or llama3"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "have no keys but .*full_attention"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "turn all channels .*0.5"),
        ({"rope_parameters": {"mrope_section": [1, 2]}}, "have no keys but .*mrope_section"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "lacks high_freq_factor, low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": "8"}}, r"RopeConfig\.factor must be a positive"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "_factor must be above"),
        ({"hidden_act": "gelu"}, r"TextConfig\.hidden_act must be one of \('silu',\), got 'gelu'"),
        ({"attention_bias": True}, "attention_bias must be False, the only value supported, got True"),
        ({"mlp_bias": True}, "mlp_bias must be False, the only value supported, got True"),
        ({"head_dim": 15}, r"TextConfig\.head_dim must be an even number"),
    ],
)  # fmt: skip
def test_what_the_decoder_does_not_compute_is_refused(changes, message):
    with pytest.raises(ValueError, match=rf"^config\.json: text_config.*{message}") as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


scalings = st.builds(
    RopeConfig,
    factor=st.floats(0.5, 100),
    low_freq_factor=st.floats(0.1, 2),
    high_freq_factor=st.floats(2.1, 9),
    original_max_position_embeddings=st.integers(1, 10**6),
)


@settings(deadline=None, max_examples=20)
@given(scaling=st.none() | scalings, theta=st.floats(1, 1e7))
def test_rotary_positions_survive_both_layouts_and_transformers_reads_them(scaling, theta):
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY_TEXT, rope_scaling=scaling, rope_theta=theta))
    assert hash(config) != hash(dataclasses.replace(config, model_type="smolvlm"))
    assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    top, preprocessor = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(top, preprocessor) == config
    rope = AutoConfig.for_model(**top).text_config.rope_parameters
    expected = {"rope_type": "default"} if scaling is None else dataclasses.asdict(scaling)
    assert {key: rope[key] for key in expected} == expected
    assert rope["rope_theta"] == theta


@pytest.mark.parametrize("config", [TINY, SCALED], ids=["plain", "scaled"])
@pytest.mark.parametrize("of_base", [{"rope_type": "default"}, {"rope_type": "llama3", **LLAMA3, "factor": 3.0}])
def test_an_export_says_the_config_and_not_the_bases_positions(of_base, config, tiny, folder, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    content["text_config"].pop("rope_scaling", None)
    content["text_config"]["rope_parameters"] = {**of_base, "rope_theta": 3.0}
    (folder / "config.json").write_text(json.dumps(content))
    mp.export_hf(tmp_path / "new", config, tiny.params, base=folder)
    assert mp.from_pretrained(tmp_path / "new")[0] == config
    rope = AutoConfig.from_pretrained(tmp_path / "new").text_config.rope_parameters
    assert rope["rope_theta"] == 10000.0
    assert (rope["rope_type"], rope.get("factor")) == (("llama3", 32.0) if config is SCALED else ("default", None))


def test_a_saved_folder_keeps_the_scaling(tiny, tmp_path):
    mp.save_pretrained(tmp_path / "saved", SCALED, tiny.params)
    assert mp.from_pretrained(tmp_path / "saved")[0] == SCALED


# ---------------------------------------------------------------------------------------------------------------------
# parts="all".


@pytest.mark.parametrize("parts", ["all", ("all",)])
def test_all_is_every_part(parts, tiny):
    _, params = mp.from_pretrained(tiny.folder, parts=parts)
    assert set(params) == {"vision_model", "connector", "text_model", "lm_head"}
    assert_same_params(params, mp.from_pretrained(tiny.folder, parts=ALL)[1])
    assert mp.params.param_shapes(tiny.config, "all") == mp.params.param_shapes(tiny.config, mp.params.PARTS)
    hidden = mp.text_features(params, np.ones((1, 3, 48), np.float32), config=tiny.config)
    assert jax.numpy.isfinite(hidden).all()


def test_all_is_no_part_among_others(tiny):
    with pytest.raises(ValueError, match=r'parts must name some of .*, or be "all", got'):
        mp.from_pretrained(tiny.folder, parts=("all", "vision"))
