"""Tokens at their places over the picture, and pictures that can be saved."""

import dataclasses
import importlib.util
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import multipatch_jax as mp
from tests.conftest import TINY

SIDE = math.isqrt(TINY.tiling.tokens_per_tile)
UNSPLIT = dataclasses.replace(TINY, tiling=dataclasses.replace(TINY.tiling, do_image_splitting=False))
NO_GLOBAL = dataclasses.replace(TINY, tiling=dataclasses.replace(TINY.tiling, global_tile=False))
ANY_SIZE = st.integers(1, 3000)


def numbered(plan):
    return np.arange(plan.num_tokens)[:, None]


@pytest.fixture(scope="module")
def encoded(tiny, photo):
    plan = mp.plan_tiles(*photo.shape[:2], tiny.config.tiling)
    return photo, mp.encode_image(tiny.params, photo, config=tiny.config), plan, tiny.config


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
    """Through the real tiling and the real pixel unshuffle, a token's pixels are those under its place."""
    plan = mp.plan_tiles(*photo.shape[:2], TINY.tiling)
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


def test_a_token_is_like_itself(encoded):
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


@pytest.mark.parametrize("config", [TINY, UNSPLIT, NO_GLOBAL])
@pytest.mark.parametrize(("height", "width"), [(300, 451), (90, 20), (12, 400)])
def test_figures_can_be_saved(config, height, width, photo, tmp_path):
    image = photo[:height, :width]
    plan = mp.plan_tiles(height, width, config.tiling)
    tokens = np.random.default_rng(0).normal(size=(plan.num_tokens, 8))
    figures = {
        "tiles": mp.plot.plot_tiles(mp.tile_image_host(image, config.tiling), plan, pale=[0]),
        "pca": mp.plot.plot_pca(image, tokens, plan, config),
        "first": mp.plot.plot_similarity(image, tokens, plan, config, 0),
        "last": mp.plot.plot_similarity(image, tokens, plan, config, plan.num_tokens - 1),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert len(np.unique(np.asarray(Image.open(tmp_path / f"{name}.png")))) > 50


def test_the_pca_picture_shows_every_token_at_its_place(encoded):
    """Reads the drawn picture back: the array that matplotlib was given is the map of the colours."""
    photo, tokens, plan, config = encoded
    left, right, square = mp.plot.plot_pca(photo, tokens, plan, config).axes
    tiled, whole = mp.plot.token_map(mp.plot.pca_colors(tokens), plan, config)
    np.testing.assert_array_equal(left.images[0].get_array(), photo)
    np.testing.assert_array_equal(right.images[0].get_array(), tiled)
    np.testing.assert_array_equal(square.images[0].get_array(), whole)
    assert right.images[0].get_extent() == [0, photo.shape[1], photo.shape[0], 0]


def test_the_chosen_token_is_framed(encoded):
    photo, tokens, plan, config = encoded
    token = mp.plot.token_at(130, 170, plan, config)
    figure = mp.plot.plot_similarity(photo, tokens, plan, config, token)
    for axes in figure.axes[:2]:
        assert len(axes.patches) == 2  # a white and a dark line
        x, y, width, height = axes.patches[0].get_bbox().bounds
        assert x <= 170 < x + width
        assert y <= 130 < y + height
    assert not figure.axes[2].patches


def test_bars_of_errors(tmp_path):
    errors = {"ours": {"pixels": 0.0, "tower": 5e-7}, "broken": {"pixels": 0.0, "tower": 0.2}}
    figure = mp.plot.plot_errors(errors, limit=1e-4)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pixels", "tower"]
    assert [text.get_text() for text in axes.texts] == [" exact", " 5.0e-07", " exact", " 2.0e-01"]
    low, high = axes.get_xlim()
    assert low < 5e-7
    assert high > 0.2
    figure.savefig(tmp_path / "errors.png")
    mp.plot.plot_errors({"all exact": {"pixels": 0.0}}).savefig(tmp_path / "exact.png")


def test_progress_over_time(tmp_path):
    figure = mp.plot.plot_progress({"stream": [0.5, 1.0, 1.5], "one by one": [1.0, 2.0, 3.0]})
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [0, 0.5, 1.0, 1.5]
    assert list(axes.lines[0].get_ydata()) == [0, 1, 2, 3]
    figure.savefig(tmp_path / "progress.png")


def test_what_does_not_fit_is_refused(encoded, monkeypatch):
    photo, tokens, plan, config = encoded
    with pytest.raises(ValueError, match=r"tokens must be of shape \(52, D\) for this plan, got \(51, 48\)"):
        mp.plot.plot_pca(photo, tokens[1:], plan, config)
    with pytest.raises(ValueError, match=r"tokens must be of shape \(52, D\) for this plan, got \(13, 4, 48\)"):
        mp.plot.plot_similarity(photo, tokens.reshape(13, 4, 48), plan, config, 0)
    with pytest.raises(ValueError, match="token must be from 0 to 51, got 52"):
        mp.plot.plot_similarity(photo, tokens, plan, config, 52)
    with pytest.raises(ValueError, match=r"Pixel \(300, 0\) is not in an image of 300 x 451"):
        mp.plot.token_at(300, 0, plan, config)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(ValueError, match=r"plots need matplotlib: pip install"):
        mp.plot.plot_pca(photo, tokens, plan, config)
