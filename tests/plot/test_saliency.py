"""What an answer looked at, over the photographs."""

import numpy as np
import pytest
from PIL import Image

import multipatch_jax as mp
from tests.helpers.images import plan_of
from tests.helpers.models import NO_GLOBAL, TINY, UNSPLIT


@pytest.mark.parametrize("config", [TINY, UNSPLIT, NO_GLOBAL])
def test_the_heat_is_at_the_tokens_places(config, photo):
    """The opacity is the root of the number, on one scale for all: the largest number of both photographs."""
    pictures = [photo, photo[:90, :200]]
    plans = [plan_of(picture, config.tiling) for picture in pictures]
    chance = np.random.default_rng(0)
    numbers = [chance.random(plan.num_tokens) * scale for plan, scale in zip(plans, (1.0, 0.1), strict=True)]
    figure = mp.plot.plot_saliency(pictures, numbers, config)
    axes = iter(figure.axes)
    most = max(one.max() for one in numbers)
    for picture, plan, one in zip(pictures, plans, numbers, strict=True):
        left, right = next(axes), next(axes)
        tiled, whole = mp.plot.token_map(one[:, None] / most, plan, config)
        np.testing.assert_array_equal(left.images[0].get_array(), picture)
        assert {image.get_extent()[1] for image in right.images} == {picture.shape[1]}
        heat = right.images[1].get_array()
        np.testing.assert_allclose(heat[..., 3], 0.85 * np.sqrt(tiled[..., 0]))
        if whole is not None:
            np.testing.assert_allclose(next(axes).images[1].get_array()[..., 3], 0.85 * np.sqrt(whole[..., 0]))
    assert next(axes, None) is None


@pytest.mark.parametrize(("height", "width"), [(300, 451), (90, 20), (12, 400)])
def test_it_can_be_saved(height, width, photo, tmp_path):
    image = photo[:height, :width]
    Image.fromarray(image).save(tmp_path / "photo.png")
    count = plan_of(image, TINY.tiling).num_tokens
    for numbers in (np.arange(count), np.zeros(count)):
        figure = mp.plot.plot_saliency([tmp_path / "photo.png", image], [numbers, numbers], TINY)
        figure.savefig(tmp_path / "heat.png")
        assert len(np.unique(np.asarray(Image.open(tmp_path / "heat.png")))) > 50


def test_what_does_not_fit_is_refused(photo):
    with pytest.raises(ValueError, match=r"of at least one image, got 0 arrays and 0 images"):
        mp.plot.plot_saliency([], [], TINY)
    with pytest.raises(ValueError, match=r"got 2 arrays and 1 images"):
        mp.plot.plot_saliency([photo], [np.zeros(52)] * 2, TINY)
    with pytest.raises(ValueError, match=r"of shape \(52, D\) for this plan"):
        mp.plot.plot_saliency([photo], [np.zeros(51)], TINY)
