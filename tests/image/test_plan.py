"""The plan of tiles against the reference's size functions, and against the sizes that its processor puts out."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_utils import SizeDict
from transformers.models.idefics3 import image_processing_pil_idefics3 as hf

from multipatch_jax import TilingConfig, plan_tiles

CONFIGS = {
    "256M": TilingConfig(2048, 512, 64),
    "2.2B": TilingConfig(1536, 384, 81),
    "8B": TilingConfig(1456, 364, 169),
    "one tile": TilingConfig(512, 512, 64),
    "over the cap": TilingConfig(8192, 512, 64),
    "not a multiple": TilingConfig(1000, 512, 64),
    "odd": TilingConfig(777, 101, 4),
}
sides = st.one_of(st.integers(1, 40), st.integers(1, 6000), st.sampled_from([511, 512, 513, 2047, 2048, 2049, 100_000]))


class Pixels:
    """An image that is only a shape, which is all that the reference's size functions look at."""

    def __init__(self, height, width):
        self.shape = (3, height, width)


class Sizes(hf.Idefics3ImageProcessorPil):
    """The reference's processor, resizing shapes and no pixels, so that thousands of sizes take seconds."""

    def resize(self, image, size, resample=None, **kwargs) -> Any:
        if size.longest_edge:
            return Pixels(*hf.get_resize_output_image_size(image, resolution_max_side=size.longest_edge))
        return Pixels(size.height, size.width)


def reference_geometry(height, width, tiling):
    processor = Sizes()
    image: Any = Pixels(height, width)
    if tiling.do_resize:
        image = processor.resize(image, SizeDict(longest_edge=tiling.longest_edge))
    resized = image.shape[1:]
    if not tiling.do_image_splitting:
        return resized, (tiling.tile_size,) * 2, 0, 0, 1
    stretched = processor.resize_for_vision_encoder(image, tiling.tile_size).shape[1:]
    if max(stretched) <= tiling.tile_size:
        return resized, stretched, 0, 0, 1
    rows = (stretched[0] - tiling.tile_size) // tiling.tile_size + 1
    cols = (stretched[1] - tiling.tile_size) // tiling.tile_size + 1
    return resized, stretched, rows, cols, rows * cols + 1


def assert_same_geometry(height, width, tiling):
    plan = plan_tiles(height, width, tiling)
    ours = (plan.resized, plan.stretched, plan.rows, plan.cols, plan.num_tiles)
    assert ours == reference_geometry(height, width, tiling), (height, width, tiling)
    assert plan.num_tokens == plan.num_tiles * tiling.tokens_per_tile


@pytest.mark.parametrize("name", CONFIGS)
def test_20000_sizes_equal_the_reference(name):
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, np.log(9000), (20_000, 2))).astype(int)
    for height, width in sizes.tolist():
        assert_same_geometry(height, width, CONFIGS[name])


@settings(max_examples=1500, deadline=None)
@given(sides, sides, st.sampled_from(list(CONFIGS.values())), st.booleans(), st.booleans())
def test_any_size_and_option_equals_the_reference(height, width, tiling, do_resize, do_image_splitting):
    tiling = dataclasses.replace(tiling, do_resize=do_resize, do_image_splitting=do_image_splitting)
    assert_same_geometry(height, width, tiling)


def test_shapes_of_the_real_processor():
    """200 random sizes through the whole reference processor, at an eighth of SmolVLM-256M's scale."""
    tiling = TilingConfig(256, 64, 4)
    processor: Any = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 256}, max_image_size={"longest_edge": 64}, do_rescale=False, do_normalize=False
    )
    rng = np.random.default_rng(1)
    for height, width in np.exp(rng.uniform(0, np.log(700), (200, 2))).astype(int).tolist():
        image = np.zeros((height, width, 3), np.uint8)
        out = processor(image, return_row_col_info=True, input_data_format="channels_last")
        plan = plan_tiles(height, width, tiling)
        assert (plan.rows, plan.cols) == (out["rows"][0][0], out["cols"][0][0])
        assert np.asarray(out["pixel_values"]).shape == (1, plan.num_tiles, 3, 64, 64)


def test_the_documented_sizes():
    for (height, width), tiles, tokens in [
        ((3000, 4000), 13, 832),
        ((4000, 3000), 13, 832),
        ((512, 512), 17, 1088),
        ((1, 5000), 5, 320),
    ]:
        plan = plan_tiles(height, width)
        assert (plan.num_tiles, plan.num_tokens) == (tiles, tokens)


@settings(max_examples=300, deadline=None)
@given(sides, sides)
def test_shipped_settings_give_few_tile_counts(height, width):
    for tiling in (CONFIGS["256M"], CONFIGS["2.2B"], CONFIGS["8B"]):
        plan = plan_tiles(height, width, tiling)
        assert plan.num_tiles in (5, 9, 13, 17)
        assert plan.has_global_tile


def test_without_the_global_tile_the_grid_alone_is_left():
    plan = plan_tiles(2048, 2048, TilingConfig(global_tile=False))
    assert (plan.rows, plan.cols, plan.num_tiles, plan.has_global_tile) == (4, 4, 16, False)
    assert plan_tiles(512, 512, TilingConfig(512, 512, 64, global_tile=False)).num_tiles == 1


@settings(max_examples=300, deadline=None)
@given(sides, sides)
def test_no_upscale(height, width):
    plan = plan_tiles(height, width, TilingConfig(upscale=False))
    if max(height, width) <= 2048:
        assert plan.resized == (height, width)
        grid = -(-height // 512), -(-width // 512)
        assert plan.rows * plan.cols <= max(grid) ** 2
    else:
        assert plan == plan_tiles(height, width)
    assert plan.num_tiles <= plan_tiles(height, width).num_tiles


def test_no_upscale_of_documented_sizes():
    assert plan_tiles(600, 600, TilingConfig(upscale=False)).num_tiles == 5
    assert plan_tiles(386, 386, TilingConfig(upscale=False)).num_tiles == 1


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.integers(1, 20), st.sampled_from(list(CONFIGS.values())))
def test_max_tiles(height, width, max_tiles, tiling):
    plan = plan_tiles(height, width, dataclasses.replace(tiling, max_tiles=max_tiles))
    assert plan.num_tiles <= max_tiles
    unlimited = plan_tiles(height, width, tiling)
    if unlimited.num_tiles <= max_tiles:
        assert plan == unlimited


@pytest.mark.parametrize("side", [0, -3, 2.5, True, "300"])
def test_a_side_that_is_no_number_of_pixels_is_refused(side):
    with pytest.raises(ValueError, match="height must be a positive number of pixels, got"):
        plan_tiles(side, 100)
    with pytest.raises(ValueError, match="width must be a positive number of pixels, got"):
        plan_tiles(100, side)
