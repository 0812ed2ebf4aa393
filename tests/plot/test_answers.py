"""The picture of what a model says with tiles, and of the global tile alone."""

import numpy as np
import pytest

import multipatch_jax as mp


def test_both_pictures_stand_over_their_answers():
    image, tile = np.full((300, 200, 3), 90, np.uint8), np.full((64, 64, 3), 30, np.uint8)
    plan = mp.plan_tiles(300, 200, mp.TilingConfig(longest_edge=256, tile_size=64, tokens_per_tile=16))
    left, right = mp.plot.plot_answers(image, tile, plan, ("12 305", "7")).axes
    assert (left.get_xlabel(), right.get_xlabel()) == ('"12 305"', '"7"')
    assert left.get_title(loc="left") == f"with its {plan.num_tiles} tiles"
    np.testing.assert_array_equal(left.images[0].get_array(), image)
    np.testing.assert_array_equal(right.images[0].get_array(), tile)
    assert len(left.lines) == plan.rows - 1 + plan.cols - 1
    assert not right.lines


@pytest.mark.parametrize("wrong", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), "tile"])
def test_what_is_no_tile_is_refused(wrong):
    plan = mp.plan_tiles(300, 200)
    with pytest.raises(ValueError, match="global_tile"):
        mp.plot.plot_answers(np.zeros((300, 200, 3), np.uint8), wrong, plan, ("", ""))
