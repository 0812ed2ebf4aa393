"""Same weights, same pixels, same tokens: the tower and connector against the reference, as a whole."""

import dataclasses

import jax.numpy as jnp
import pytest
import torch

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.models import MEMBERS, make_model, with_layers, with_small_text
from tests.helpers.parity import assert_float32_parity, check_model, normalised, some_tiles

CONFIGS_SEEN = (mp.presets.SMOLVLM_256M, mp.presets.SMOLVLM_2_2B, mp.presets.IDEFICS3_8B)  # by test_float32


@pytest.mark.parametrize("implementation", ["auto", "blocked"])  # test_native.py has the compiled encoder's builds
@pytest.mark.parametrize(
    ("name", "layers", "count"), [("SmolVLM-256M", 12, 2), ("SmolVLM-2.2B", 2, 1), ("Idefics3-8B", 2, 1)]
)
def test_float32(name, layers, count, implementation, photo, tmp_path):
    config = with_layers(MEMBERS[name], layers)
    model = make_model(config, tmp_path)
    check_model(model, some_tiles(photo, config, count), mp.Compute(attention=implementation))


@pytest.mark.parametrize("name", [name for name in mp.PRESETS if mp.PRESETS[name] not in CONFIGS_SEEN])
def test_float32_of_every_other_member(name, photo, tmp_path):
    config = dataclasses.replace(with_small_text(with_layers(mp.PRESETS[name], 1)), embedding_size=None)
    check_model(make_model(config, tmp_path), some_tiles(photo, config, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmolVLM-2.2B", "Idefics3-8B"])
def test_float32_full_depth(name, photo, tmp_path):
    config = MEMBERS[name]
    assert config.vision.num_hidden_layers == 27
    check_model(make_model(config, tmp_path), some_tiles(photo, config, 1))


def test_float32_with_sharp_attention_and_large_channels(photo, tmp_path):
    """Trained towers have both, plain random ones neither. They raise the float32 floor tenfold, ours and theirs."""
    config = with_layers(MEMBERS["SmolVLM-256M"], 6)

    @torch.no_grad()
    def sharpen(model):
        for name, tensor in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")) and "vision_model" in name:
                tensor.mul_(3)
        model.model.vision_model.encoder.layers[0].mlp.fc2.bias[17] = 80.0

    model = make_model(config, tmp_path, change=sharpen)
    pixels = normalised(some_tiles(photo, config, 1))
    ours = mp.vision_features(model.params, pixels, config=config)
    features32, _ = reference.image_features(model.reference, pixels)
    features64, _ = reference.image_features(model.reference.double(), pixels)
    assert_float32_parity(ours, features32, features64)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["SmolVLM-256M", "SmolVLM-2.2B"])
def test_bfloat16(name, photo, tmp_path):
    config = with_layers(MEMBERS[name], 3)
    model = make_model(config, tmp_path)
    tiles = some_tiles(photo, config, 1)
    exact = reference.image_features(model.reference, normalised(tiles))
    theirs = reference.image_features(model.reference.bfloat16(), normalised(tiles))
    reference.save_checkpoint(model.reference, config, tmp_path / "bfloat16")
    _, params = mp.from_pretrained(tmp_path / "bfloat16")
    features = mp.vision_features(params, normalised(tiles), config=config)
    tokens = mp.encode_tiles(params, tiles, config=config)
    for mine, their, truth in zip((features, tokens), theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        assert distance(mine, truth) <= tolerances.BFLOAT16_RATIO * distance(their, truth)


@pytest.mark.gpu
def test_the_dtype_asked_for_rules_the_computation(tiny, tiny_tiles):
    tokens = mp.encode_tiles(tiny.params, tiny_tiles, config=tiny.config, compute=mp.Compute(dtype="bfloat16"))
    assert tokens.dtype == jnp.bfloat16
    assert 1e-4 < distance(tokens, mp.encode_tiles(tiny.params, tiny_tiles, config=tiny.config)) < 2e-2
