"""Tokens at their places over the picture: maps, colours, similarities."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from tests.helpers.images import plan_of
from tests.helpers.models import NO_GLOBAL, TINY, UNSPLIT

SIDE = math.isqrt(TINY.tiling.tokens_per_tile)
ANY_SIZE = st.integers(1, 3000)


def numbered(plan):
    return np.arange(plan.num_tokens)[:, None]


@settings(max_examples=100, deadline=None)
@given(ANY_SIZE, ANY_SIZE, st.sampled_from([TINY, UNSPLIT, NO_GLOBAL]))
def test_numbered_tokens_land_where_the_plan_says(height, width, config):
    plan = mp.plan_tiles(height, width, config.tiling)
    tiled, whole = mp.plot.token_map(numbered(plan), plan, config)
    rows, cols = max(plan.rows, 1), max(plan.cols, 1)
    assert tiled.shape == (rows * SIDE, cols * SIDE, 1)
    for y in range(rows * SIDE):
        for x in range(cols * SIDE):
            tile = (y // SIDE) * cols + x // SIDE
            assert tiled[y, x, 0] == tile * SIDE**2 + (y % SIDE) * SIDE + x % SIDE
    if plan.has_global_tile:
        last = np.arange(plan.num_tokens - SIDE**2, plan.num_tokens).reshape(SIDE, SIDE, 1)
        np.testing.assert_array_equal(whole, last)
    else:
        assert whole is None


def test_the_map_agrees_with_the_pixels(photo):
    """After the real tiling and the real pixel unshuffle, a token stands over the pixels it was made of."""
    plan = plan_of(photo, TINY.tiling)
    tiles = mp.tile_image_host(photo, TINY.tiling)
    patch, scale = TINY.vision.patch_size, TINY.connector.scale_factor
    grid = TINY.tiling.tile_size // patch
    tokens = []
    for tile in tiles.astype(np.float32):  # sums of bytes are exact
        sums = tile.reshape(grid, patch, grid, patch, 3).sum(axis=(1, 3)).reshape(grid**2, 3)
        tokens.append(np.asarray(mp.nn.pixel_unshuffle(jnp.asarray(sums), scale)).reshape(-1, scale**2, 3).sum(axis=1))
    tiled, whole = mp.plot.token_map(np.concatenate(tokens), plan, TINY)
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles[:-1].reshape(3, 4, *tiles.shape[1:])])
    assert picture.shape[:2] == plan.stretched
    block = patch * scale
    expected = picture.astype(np.float32).reshape(3 * SIDE, block, 4 * SIDE, block, 3).sum(axis=(1, 3))
    np.testing.assert_array_equal(tiled, expected)
    assert whole is not None
    assert whole.shape == (SIDE, SIDE, 3)


@settings(max_examples=100, deadline=None)
@given(ANY_SIZE, ANY_SIZE, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_the_token_at_a_pixel_covers_it(height, width, down, right):
    plan = mp.plan_tiles(height, width, TINY.tiling)
    y, x = min(down * height, height - 1), min(right * width, width - 1)
    tiled, _ = mp.plot.token_map(numbered(plan), plan, TINY)
    ((row, col, _),) = np.argwhere(tiled == mp.plot.token_at(y, x, plan, TINY))
    rows, cols = tiled.shape[:2]
    assert row * height <= y * rows < (row + 1) * height
    assert col * width <= x * cols < (col + 1) * width


def test_colours_are_principal_components(encoded):
    _, tokens, plan, _ = encoded
    colours = mp.plot.pca_colors(tokens)
    assert colours.shape == (plan.num_tokens, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    inside = (colours > 0).all(axis=1) & (colours < 1).all(axis=1)  # not clipped
    x = np.asarray(tokens, np.float64)
    _, vectors = np.linalg.eigh(np.cov(x.T))
    for channel in range(3):
        projected = (x - x.mean(axis=0)) @ vectors[:, -1 - channel]
        assert abs(np.corrcoef(projected[inside], colours[inside, channel])[0, 1]) > 0.9999
    np.testing.assert_array_equal(colours, mp.plot.pca_colors(jnp.asarray(tokens)))


def test_few_and_equal_tokens_have_colours_too():
    assert mp.plot.pca_colors(np.ones((64, 8), np.float32)).shape == (64, 3)
    assert np.isfinite(mp.plot.pca_colors(np.random.default_rng(0).normal(size=(2, 8)))).all()
    assert mp.plot.pca_colors(jnp.ones((4, 2), jnp.bfloat16)).shape == (4, 3)


def test_a_token_is_most_similar_to_itself(encoded):
    _, tokens, plan, config = encoded
    for token in (0, 17, plan.num_tokens - 1):
        similarity = mp.plot.cosine_similarity(tokens, token)
        assert similarity.argmax() == token
        assert similarity[token] == pytest.approx(1, abs=1e-6)
        assert abs(similarity).max() <= 1 + 1e-6
    tiled, _ = mp.plot.token_map(mp.plot.cosine_similarity(tokens, 17)[:, None], plan, config)
    assert np.unravel_index(tiled.argmax(), tiled.shape)[:2] == tuple(
        np.argwhere(mp.plot.token_map(numbered(plan), plan, config)[0][..., 0] == 17)[0]
    )
