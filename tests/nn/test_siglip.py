"""Masks and positions of partly filled tiles, against the reference."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.nn import siglip
from multipatch_reference import distance
from tests.helpers import tolerances


def partly_filled(side, sizes, seed=0):
    """Noise in [-1, 1] and its pixel mask; the rest of each tile is exactly 0, as the reference pads."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((len(sizes), side, side), bool)
    for one, (height, width) in zip(mask, sizes, strict=True):
        one[:height, :width] = True
    pixels = rng.uniform(-1, 1, (len(sizes), side, side, 3)).astype(np.float32)
    return pixels * mask[..., None], mask


SIZES = [(64, 64), (40, 64), (64, 24), (33, 50), (8, 8), (1, 64)]


def test_partly_filled_tiles_equal_the_reference_on_valid_patches(tiny):
    pixels, mask = partly_filled(64, SIZES)
    features32, _ = reference.image_features(tiny.reference, pixels, mask)
    features64, _ = reference.image_features(tiny.reference.double(), pixels, mask)
    tiny.reference.float()
    ours = mp.vision_features(tiny.params, pixels, config=tiny.config, pixel_attention_mask=mask)
    for index, (height, width) in enumerate(SIZES):
        valid = np.zeros((8, 8), bool)
        valid[: -(-height // 8), : -(-width // 8)] = True
        valid = valid.reshape(-1)
        mine, theirs, truth = np.asarray(ours[index])[valid], features32[index][valid], features64[index][valid]
        assert distance(mine, truth) <= max(tolerances.FLOAT32_RATIO * distance(theirs, truth), tolerances.SAME_PROGRAM)


def test_a_mask_is_not_ignored(tiny):
    pixels, mask = partly_filled(64, [(40, 40)])
    masked = mp.vision_features(tiny.params, pixels, config=tiny.config, pixel_attention_mask=mask)
    assert distance(masked, mp.vision_features(tiny.params, pixels, config=tiny.config)) > 1e-2


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_a_mask_of_integers_is_one_of_bools(dtype, tiny):
    """The reference's processor makes int64."""
    pixels, mask = partly_filled(64, [(40, 40)])
    options = {"config": tiny.config}
    expected = mp.vision_features(tiny.params, pixels, pixel_attention_mask=mask, **options)
    for integers in (mask.astype(dtype), jnp.asarray(mask.astype(dtype))):
        found = mp.vision_features(tiny.params, pixels, pixel_attention_mask=integers, **options)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="pixel_attention_mask must be bools, or integers 0 and 1, got values 0 to 2"):
        mp.vision_features(tiny.params, pixels, pixel_attention_mask=2 * mask.astype(dtype), **options)


def test_a_full_mask_is_no_mask(tiny):
    pixels, mask = partly_filled(64, [(64, 64)])
    masked = mp.vision_features(tiny.params, pixels, config=tiny.config, pixel_attention_mask=mask)
    plain = mp.vision_features(tiny.params, pixels, config=tiny.config)
    assert distance(masked, plain) <= tolerances.SAME_PROGRAM


def test_what_lies_in_the_padding_changes_no_real_patch(tiny):
    pixels, mask = partly_filled(64, [(40, 24)])
    dirty = np.where(mask[..., None], pixels, np.float32(7))
    valid = np.asarray(siglip.patch_attention_mask(jnp.asarray(mask[0]), 8)).reshape(-1)
    clean, soiled = (
        np.asarray(mp.vision_features(tiny.params, x, config=tiny.config, pixel_attention_mask=mask))[0][valid]
        for x in (pixels, dirty)
    )
    np.testing.assert_array_equal(clean, soiled)


def test_padding_tiles_change_no_bit_of_a_real_tile(tiny):
    pixels, mask = partly_filled(64, SIZES)
    alone = np.asarray(mp.vision_features(tiny.params, pixels, config=tiny.config, pixel_attention_mask=mask))
    empty = np.zeros((3, 64, 64, 3), np.float32)
    together = mp.vision_features(
        tiny.params,
        np.concatenate([pixels, empty]),
        config=tiny.config,
        pixel_attention_mask=np.concatenate([mask, np.zeros((3, 64, 64), bool)]),
    )
    np.testing.assert_array_equal(np.asarray(together)[: len(pixels)], alone)
    assert np.isfinite(np.asarray(together)).all()


@pytest.mark.parametrize("n", [32, 27, 26, 14])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_position_ids_equal_the_reference(n, data):
    """The reference does not return them. A table whose row i holds i shows which rows its embeddings took."""
    height, width = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    config = dataclasses.replace(mp.presets.SMOLVLM_256M.vision, hidden_size=12, image_size=n * 4, patch_size=4)
    hf = reference.hf_config(dataclasses.replace(mp.presets.SMOLVLM_256M)).vision_config
    hf.update({"hidden_size": config.hidden_size, "image_size": config.image_size, "patch_size": 4})
    embeddings = Idefics3VisionEmbeddings(hf)
    bias = embeddings.patch_embedding.bias
    assert bias is not None
    mask = torch.zeros(1, n, n, dtype=torch.bool)
    mask[:, :height, :width] = True
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        bias.zero_()
        embeddings.position_embedding.weight[:, 0] = torch.arange(n * n)
        expected = embeddings(torch.zeros(1, 3, n * 4, n * 4), mask)[0, :, 0]
    ours = siglip.position_ids(jnp.asarray(mask[0].numpy()), n)
    np.testing.assert_array_equal(np.asarray(ours), expected.numpy())


def test_full_tiles_have_the_identity_positions():
    for n in (32, 27, 26):
        np.testing.assert_array_equal(siglip.position_ids(np.ones((n, n), bool), n), np.arange(n * n))


def test_a_patch_is_valid_if_any_of_its_pixels_is():
    mask = np.zeros((27, 27), bool)  # 3 x 3 patches of 8, and 3 pixels that fill none
    mask[15, 7] = mask[25, 25] = True
    expected = np.zeros((3, 3), bool)
    expected[1, 0] = True
    np.testing.assert_array_equal(siglip.patch_attention_mask(jnp.asarray(mask), 8), expected)
