"""tile_image inside jit, vmap and grad, with arrays of any memory layout, and with what is not an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from multipatch_jax.image import normalize, tile_image, tile_image_host
from tests.helpers.images import black_and_white
from tests.helpers.tiling import SMALL, assert_same_bytes, photographs, reference_tiles


def test_inside_jit_and_vmap():
    images = np.stack([black_and_white(90, 130, seed) for seed in range(3)])
    expected = np.stack([reference_tiles(image, SMALL) for image in images])
    assert_same_bytes(jax.jit(lambda x: tile_image(x, SMALL))(images[0]), expected[0])
    assert_same_bytes(jax.vmap(lambda x: tile_image(x, SMALL))(jnp.asarray(images)), expected)
    assert_same_bytes(jax.jit(jax.vmap(lambda x: tile_image(x, SMALL, implementation="banded")))(images), expected)


def test_gradients_stop_at_bytes():
    def loss(scale, image):
        return (scale * normalize(tile_image(image, SMALL))).sum()

    image = jnp.asarray(photographs()[1])
    expected = np.asarray(normalize(jnp.asarray(reference_tiles(photographs()[1], SMALL)))).sum(dtype=np.float64)
    assert jax.jit(jax.grad(loss))(1.0, image) == pytest.approx(float(expected), rel=1e-3)


def test_arrays_of_all_memory_layouts():
    image = np.asfortranarray(photographs()[1])
    view = np.flip(photographs()[1], axis=1)
    for one in (image, view, view.swapaxes(0, 1)):
        expected = reference_tiles(np.ascontiguousarray(one), SMALL)
        assert_same_bytes(tile_image_host(one, SMALL), expected)
        assert_same_bytes(tile_image(one, SMALL), expected)


@pytest.mark.parametrize("function", [tile_image, tile_image_host])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 30), np.uint8), r"uint8 of shape \(H, W, 3\).* got uint8 of shape \(20, 30\)\.$"),
        (np.zeros((20, 30, 4), np.uint8), r"got uint8 of shape \(20, 30, 4\)"),
        (np.zeros((20, 30, 3), np.float32), "got float32 of shape"),
        (np.zeros((3, 20, 30), np.uint8), r"Channels come last here: np\.moveaxis\(x, 0, -1\)"),
        (Image.new("RGB", (5, 5)), "load_image makes it, got Image"),
        ("photo.jpg", "got str"),
        (np.zeros((0, 30, 3), np.uint8), "positive number of pixels"),
    ],
)
def test_what_is_no_image_is_refused(function, image, message):
    with pytest.raises(ValueError, match=message):
        function(image, SMALL)
