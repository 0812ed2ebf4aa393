"""Configs and presets: hashable, unchanged by our own JSON, and refused where fields contradict each other."""

import copy
import dataclasses
import json

import pytest

import multipatch_jax as mp
from multipatch_jax.config import config_from_dict


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
        ({"upscale": "no"}, "upscale must be one of"),
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
