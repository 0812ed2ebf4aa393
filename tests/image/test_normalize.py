"""Bytes to [-1, 1], as torchvision and the reference's PIL backend do it."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from multipatch_jax.image import normalize, tile_image
from tests.helpers.tiling import SMALL, photographs


def test_normalisation_is_the_references():
    x = np.arange(256, dtype=np.uint8)
    torchvision = ((torch.arange(256, dtype=torch.float32) - 127.5) / 127.5).numpy()
    pil = ((x.astype(np.float64) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
    for function in (normalize, jax.jit(normalize), jax.vmap(normalize)):
        got = np.asarray(function(jnp.asarray(x)))
        assert got.dtype == np.float32
        assert np.array_equal(got, torchvision)
        assert np.abs(got - pil).max() <= 6e-8
    assert (got.min(), got.max()) == (-1, 1)


def test_normalised_tiles_are_the_references():
    processor = Idefics3ImageProcessorPil(size={"longest_edge": 256}, max_image_size={"longest_edge": 64})
    expected = processor(Image.fromarray(photographs()[1]), return_tensors="np")["pixel_values"][0].transpose(
        0, 2, 3, 1
    )
    got = np.asarray(normalize(tile_image(photographs()[1], SMALL)))
    assert np.abs(got - expected).max() <= 6e-8
