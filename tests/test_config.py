"""Configs and presets: hashable, unchanged by our own JSON, and refused where fields contradict each other."""

import copy
import dataclasses
import json

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.config import config_from_dict
from tests.helpers.models import TINY, TINY_TEXT


@pytest.mark.parametrize("name", mp.PRESETS)
def test_presets_are_hashable_and_survive_our_json(name):
    config = mp.PRESETS[name]
    assert hash(config) == hash(copy.deepcopy(config))
    assert config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"longest_edge": 0}, "longest_edge must be a positive integer, got 0"),
        ({"tile_size": 5.5}, "tile_size must be a positive integer, got 5.5"),
        ({"resampler": "opencv"}, "resampler must be one of .* got 'opencv'"),
        ({"filter": "nearest"}, "filter must be one of .* got 'nearest'"),
        ({"max_tiles": 0}, "max_tiles must be a positive integer, got 0"),
        ({"max_tiles": 4, "do_resize": False}, "needs do_resize=True"),
        ({"upscale": "no"}, "upscale must be True or False, got 'no'"),
    ],
)
def test_bad_tilings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mp.TilingConfig(**changes)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="tokens_per_tile must be 64"):
        dataclasses.replace(mp.presets.SMOLVLM_256M, tiling=mp.TilingConfig(tokens_per_tile=81))
    with pytest.raises(ValueError, match="text model's hidden_size"):
        dataclasses.replace(mp.presets.SMOLVLM_256M, connector=mp.ConnectorConfig(4, 960))
    with pytest.raises(ValueError, match="Not a config that this version wrote"):
        config_from_dict({**dataclasses.asdict(mp.presets.SMOLVLM_256M), "colour": 1})


# ---------------------------------------------------------------------------------------------------------------------
# The kind of every field.

INT, FLOAT, BOOL, TEXT, PART = "int", "float", "bool", "str", "Config"
WRONG = {
    INT: [0, -1, True, 1.5, 2.0, "64", None, [1], {}, float("nan"), float("inf"), b"1", 10**400],
    FLOAT: [0.0, -1e-6, float("nan"), float("inf"), True, "1e-6", None, [1e-6], 1j, 10**400],
    BOOL: [0, 1, "true", None, [], float("nan")],
    TEXT: [None, 1, b"idefics3", ["idefics3"], {}, True],
    PART: [{}, [], 5, "vision", True],
}


def fields():
    """Each field of each config: (a valid config, the field's name, its kind)."""
    for config in (TINY.vision, TINY.connector, TINY.tiling, TINY_TEXT, TINY):
        for field in dataclasses.fields(config):
            kind = str(getattr(field.type, "__name__", field.type)).split(" | ")[0]
            yield pytest.param(config, field.name, kind, id=f"{type(config).__name__}.{field.name}")


@pytest.mark.parametrize(("config", "name", "kind"), list(fields()))
def test_a_value_of_another_kind_is_refused_by_the_fields_name(config, name, kind):
    optional = name in ("max_tiles", "text", "pad_token_id", "embedding_size", "rope_scaling")
    for value in WRONG[PART if kind.endswith("Config") else kind]:
        allowed = (value is None and optional) or (value == 0 and type(value) is int and name.endswith("token_id"))
        if not allowed:
            with pytest.raises(ValueError, match=rf"^{type(config).__name__}\.{name} must be .*, got "):
                dataclasses.replace(config, **{name: value})


def test_a_long_value_is_cut_in_the_error():
    with pytest.raises(ValueError, match=r"VisionConfig\.patch_size") as error:
        mp.VisionConfig(patch_size=[0] * 100_000)  # type: ignore[arg-type]
    assert len(str(error.value)) < 200


def test_numpys_numbers_become_plain_ones_so_that_a_config_can_be_saved():
    config = mp.TextConfig(vocab_size=np.int64(7), rope_theta=np.float64(5), pad_token_id=np.int32(0))  # type: ignore[arg-type]
    assert config == mp.TextConfig(vocab_size=7, rope_theta=5.0, pad_token_id=0)
    json.dumps(dataclasses.asdict(config))


@pytest.mark.parametrize("raw", [[], None, 5, {}, {"vision": 5}, {"vision": {"x": 1}}, {"vision": {}, "connector": []}])
def test_a_saved_config_of_another_shape_is_refused(raw):
    with pytest.raises(ValueError, match="Not a config that this version wrote"):
        config_from_dict(raw)


def test_sizes_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="image_size must be at least patch_size, got 8 and 16"):
        mp.VisionConfig(image_size=8, patch_size=16)
    with pytest.raises(ValueError, match="num_attention_heads must be a multiple of num_key_value_heads, got 9 and 2"):
        mp.TextConfig(num_attention_heads=9, num_key_value_heads=2)
