"""Tiles to tokens: the same tokens however they are batched, and bad input refused before device work."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.images import noise


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 13, 64])
def test_any_batch_size_gives_the_same_tokens(batch_size, tiny, tiny_tiles, tokens):
    assert len(tiny_tiles) == 13
    got = mp.encode_tiles(tiny.params, tiny_tiles, config=tiny.config, batch_size=batch_size)
    assert distance(got, tokens) <= tolerances.SAME_PROGRAM


def test_one_tile_at_a_time_equals_all_at_once(tiny, tiny_tiles, tokens):
    one_by_one = [mp.encode_tiles(tiny.params, tile[None], config=tiny.config) for tile in tiny_tiles]
    assert distance(np.concatenate(one_by_one), tokens) <= tolerances.SAME_PROGRAM


def test_vmap_of_the_module_equals_encode_tiles(tiny, tiny_tiles, tokens):
    module = mp.MultiPatchVisionProcessor(tiny.config)
    pixels = (jnp.asarray(tiny_tiles, jnp.float32) - 127.5) / 127.5
    got = jax.vmap(lambda tile: module.apply({"params": tiny.params}, tile))(pixels)
    assert distance(got, tokens) <= tolerances.SAME_PROGRAM


def test_jit_equals_eager(tiny, tiny_tiles, tokens):
    with jax.disable_jit():
        eager = mp.encode_tiles(tiny.params, tiny_tiles[:2], config=tiny.config)
    assert distance(eager, tokens[:2]) <= tolerances.SAME_PROGRAM


def test_padding_tiles_change_no_bit_of_a_real_tile(tiny, tiny_tiles, tokens):
    padded = np.concatenate([tiny_tiles, np.zeros((4, 64, 64, 3), np.uint8)])
    got = mp.encode_tiles(tiny.params, padded, config=tiny.config)
    np.testing.assert_array_equal(np.asarray(got)[:13], tokens)


def test_a_language_model_beside_the_tower_stays_out_of_the_program(tiny, tiny_tiles, tokens):
    _, params = mp.from_pretrained(tiny.folder, parts=("vision", "connector", "text"))
    assert "text_model" in params
    np.testing.assert_array_equal(mp.encode_tiles(params, tiny_tiles, config=tiny.config), tokens)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (np.zeros((2, 64, 64, 3), np.float32), r"uint8 of shape \(N, 64, 64, 3\), got float32"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"\(N, 64, 64, 3\), got uint8 of shape \(2, 32, 32, 3\)"),
        (np.zeros((64, 64, 3), np.uint8), r"got uint8 of shape \(64, 64, 3\)"),
        (np.zeros((2, 64, 64, 4), np.uint8), r"got uint8 of shape \(2, 64, 64, 4\)"),
        (np.zeros((2, 3, 64, 64), np.uint8), r"Channels come last here: np.moveaxis"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"got uint8 of shape \(0, 64, 64, 3\)"),
        ([[1, 2]], r"got None of shape \(\)"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tiles, message, tiny, compilations):
    with pytest.raises(ValueError, match=message):
        mp.encode_tiles(tiny.params, tiles, config=tiny.config)
    assert compilations() == []


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        (np.zeros((2, 64, 64, 3), np.uint8), None, r"pixel_values must be floating of shape \(N, M, M, 3\), got uint8"),
        (np.zeros((2, 64, 32, 3), np.float32), None, r"got float32 of shape \(2, 64, 32, 3\)"),
        (np.zeros((2, 64, 64, 3), np.float32), np.ones((2, 64, 32), bool), r"mask must be bool of shape \(2, 64, 64\)"),
        (np.zeros((2, 64, 64, 3), np.float32), np.ones((2, 64, 64)), r"must be bool of shape .* got float64"),
    ],
)
def test_pixel_values_that_do_not_fit_are_refused(pixels, mask, message, tiny):
    with pytest.raises(ValueError, match=message):
        mp.vision_features(tiny.params, pixels, config=tiny.config, pixel_attention_mask=mask)


def test_params_of_another_model_are_refused(tiny, tiny_tiles):
    with pytest.raises(ValueError, match="not of this config") as error:
        mp.encode_image(tiny.params, noise(64, 64))  # the default config is SmolVLM-256M's
    assert " ~ connector/modality_projection/proj/kernel: expected (12288, 576), found (1536, 48)" in str(error.value)
    with pytest.raises(ValueError, match=r" - connector/modality_projection/proj/kernel \(1536, 48\)"):
        mp.encode_tiles({"vision_model": tiny.params["vision_model"]}, tiny_tiles, config=tiny.config)
    no_params: Any = None
    with pytest.raises(ValueError, match="nested dict of arrays, got None"):
        mp.encode_tiles(no_params, tiny_tiles, config=tiny.config)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_that_is_no_number_of_tiles_is_refused(batch_size, tiny, tiny_tiles):
    with pytest.raises(ValueError, match="batch_size must be a positive number of tiles"):
        mp.encode_tiles(tiny.params, tiny_tiles, config=tiny.config, batch_size=batch_size)
