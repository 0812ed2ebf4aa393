"""Tiles made on the host alone, as data-loading workers make them."""

import dataclasses
import multiprocessing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multipatch_jax.config import TilingConfig
from multipatch_jax.image import tile_image, tile_image_host
from tests.helpers.images import black_and_white
from tests.helpers.tiling import SMALL, assert_same_bytes, photographs, reference_tiles


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 9))
def test_host_tiles_of_any_size(height, width, seed):
    image = black_and_white(height, width, seed)
    assert_same_bytes(tile_image_host(image, SMALL), reference_tiles(image, SMALL))


def tiles_in_a_process(image):
    return tile_image_host(image, SMALL)


def test_in_a_forked_process():
    """As data loaders work: forked when threads and JAX are already running."""
    image = photographs()[2]
    expected = np.asarray(tile_image(image, SMALL))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for got in pool.map(tiles_in_a_process, [image] * 4):
            assert_same_bytes(got, expected)


def test_the_host_does_not_call_jax(monkeypatch):
    for name in ("stack", "asarray", "zeros"):
        monkeypatch.delattr(jnp, name)
    monkeypatch.delattr(jax, "jit")
    assert len(tile_image_host(black_and_white(50, 70), dataclasses.replace(SMALL, resampler="torchvision"))) == 13


def test_tiles_are_not_the_callers_memory():
    image = black_and_white(64, 64)
    for splitting in (True, False):
        tiling = TilingConfig(64, 64, 16, do_image_splitting=splitting)
        tiles = tile_image_host(image, tiling)
        assert np.array_equal(tiles[0], image)
        assert not np.shares_memory(tiles, image)
    read_only = np.asarray(Image.fromarray(image))
    assert not read_only.flags.writeable
    assert_same_bytes(tile_image(read_only, tiling), image[None])


def test_the_host_refuses_jax_arrays():
    with pytest.raises(ValueError, match="Expected a NumPy array"):
        tile_image_host(jnp.zeros((20, 30, 3), jnp.uint8), SMALL)  # pyright: ignore[reportArgumentType]
