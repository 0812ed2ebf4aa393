"""Figures: they can be saved, and show what they are given."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

import multipatch_jax as mp
from tests.helpers.models import NO_GLOBAL, TINY, UNSPLIT


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
    with pytest.raises(ValueError, match="token must be an integer from 0 to 51, got 52"):
        mp.plot.plot_similarity(photo, tokens, plan, config, 52)
    with pytest.raises(ValueError, match=r"Pixel \(300, 0\) is not in an image of 300 x 451"):
        mp.plot.token_at(300, 0, plan, config)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install"):
        mp.plot.plot_pca(photo, tokens, plan, config)
