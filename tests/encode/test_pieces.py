"""Images in pieces, as a GPU gets them: the tokens of padded images, and nothing compiled after warmup."""

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.encode import execution
from multipatch_jax.image import prepare, prepare_image
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.aligned import aligned
from tests.helpers.images import noise, random_images


@pytest.fixture
def in_pieces(monkeypatch):
    """This machine takes images as a GPU does."""
    for module in (execution, prepare):
        monkeypatch.setattr(module, "default_resize_form", lambda platform=None: "batched")
    assert isinstance(prepare_image(noise(3, 4)).pixels, tuple)


def test_an_image_in_pieces_has_the_same_tokens(tiny, in_pieces):
    image = noise(1031, 700)  # two whole pieces and a part
    tiles = mp.tile_image_host(image, tiny.config.tiling)
    expected = np.asarray(mp.encode_tiles(tiny.params, tiles, config=tiny.config)).reshape(-1, 48)
    got = mp.encode_image(tiny.params, image, config=tiny.config)
    assert distance(got, expected) <= tolerances.SAME_PROGRAM


def test_the_caller_may_change_the_image_when_encode_image_returns(tiny, in_pieces):
    image = aligned(noise(1024, 1024))
    expected = np.asarray(mp.encode_image(tiny.params, image, config=tiny.config))
    got = mp.encode_image(tiny.params, image, config=tiny.config)
    image[:] = 7
    assert distance(got, expected) <= tolerances.SAME_PROGRAM


def test_a_stream_of_pieces_compiles_nothing_after_warmup(tiny, in_pieces):
    images = [*random_images(20), noise(2100, 30)]
    mp.warmup(tiny.params, config=tiny.config)
    with mp.encode.forbid_compilations():
        results = mp.encode_images(tiny.params, images, config=tiny.config)
    for got, image in zip(results, images, strict=True):
        tiles = mp.tile_image_host(image, tiny.config.tiling)
        expected = np.asarray(mp.encode_tiles(tiny.params, tiles, config=tiny.config))
        assert distance(got, expected.reshape(got.shape)) <= tolerances.SAME_PROGRAM
