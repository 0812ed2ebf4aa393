"""Size buckets: which images fit the device, and one program for each bucket and number of tiles."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.config import TilingConfig
from multipatch_jax.image import (
    blank_images,
    bucket_side,
    padded_steps,
    plan_tiles,
    prepare_image,
    tile_image,
    tile_image_host,
    tile_padded,
)
from multipatch_jax.image.resize import FORMS
from multipatch_jax.image.steps import pack_steps
from multipatch_jax.resamplers import RESAMPLERS, Resampler
from tests.helpers.images import black_and_white, plan_of
from tests.helpers.tiling import SMALL, assert_same_bytes


@pytest.mark.parametrize("form", FORMS)
def test_one_compilation_for_a_bucket_and_a_number_of_tiles(form):
    static = {"num_tiles": 13, "tiling": SMALL, "form": form}
    tiles_of: Any = jax.jit(functools.partial(tile_padded, **static))
    rng = np.random.default_rng(0)
    grids = set()
    for seed in range(40):
        shorter = int(rng.integers(60, 600))
        height, width = rng.permutation([shorter, int(shorter * rng.uniform(1.34, 1.7))])
        image, plan = black_and_white(height, width, seed), plan_tiles(height, width, SMALL)
        padded = rng.integers(0, 256, (1024, 1024, 3), np.uint8)  # what is in the padding must not show
        padded[:height, :width] = image
        assert_same_bytes(tiles_of(padded, padded_steps(plan, SMALL, 1024)), tile_image_host(image, SMALL))
        grids.add((plan.rows, plan.cols))
    assert grids == {(3, 4), (4, 3)}
    assert tiles_of._cache_size() == 1


def test_room_for_more_tiles_than_the_image_has():
    """The stream asks for as many as an image may have; the plan's tiles come first."""
    tiles_of: Any = jax.jit(lambda x, steps: tile_padded(x, steps.unpack(), num_tiles=17, tiling=SMALL))
    for size in ((60, 64), (300, 451), (100, 900), (500, 500), (400, 170), (64, 64)):
        image = black_and_white(*size)
        plan, pixels, steps, _ = prepare_image(image, SMALL)
        assert steps is not None
        got = tiles_of(pixels, steps)
        assert got.shape == (17, 64, 64, 3)
        assert_same_bytes(got[: plan.num_tiles], tile_image_host(image, SMALL))
    assert tiles_of._cache_size() == 1


def test_buckets():
    sides = {size: bucket_side(plan_tiles(*size)) for size in ((1, 1), (1024, 1024), (1024, 3), (1025, 1), (5, 2048))}
    assert list(sides.values()) == [1024, 1024, 1024, 2048, 2048]
    assert bucket_side(plan_tiles(2049, 4096)) == 4096
    assert bucket_side(plan_tiles(4097, 10)) is None


def test_an_image_is_in_a_bucket_or_cut_into_tiles():
    for image, on_device in ((black_and_white(60, 90), True), (black_and_white(60, 90), False)):
        prepared = prepare_image(image, SMALL, on_device=on_device)
        assert prepared.plan == plan_of(image, SMALL)
        assert (prepared.pixels is None) == (prepared.steps is None) == (prepared.tiles is not None) == (not on_device)
    large = prepare_image(black_and_white(4097, 10), SMALL)
    assert large.pixels is None
    assert large.tiles is not None
    assert_same_bytes(large.tiles, tile_image_host(black_and_white(4097, 10), SMALL))


@pytest.mark.parametrize("form", FORMS)
def test_blank_images_have_the_shapes_of_every_image_of_their_bucket(form):
    blanks = list(blank_images(SMALL, form))
    assert [image.plan.height for image in blanks] == [1024, 2048, 4096]
    for blank, size in zip(blanks, ((300, 900), (2048, 3), (40, 2100)), strict=True):
        prepared = prepare_image(black_and_white(*size), SMALL, form=form)
        assert isinstance(prepared.pixels, tuple) == (form == "batched")
        shapes = [jax.tree.map(np.shape, (image.pixels, image.steps)) for image in (prepared, blank)]
        assert shapes[0] == shapes[1]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(["lanczos", "bicubic", "bilinear"]))
def test_all_images_up_to_4096_fit_the_device(height, width, name):
    tiling = TilingConfig(filter=name)
    assert bucket_side(plan_tiles(height, width, tiling), tiling) is not None


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((4097, 4000), {}),
        ((10, 5000), {}),
        ((4096, 111), {}),  # 111 pixels become 6, a larger scale than 4096 to 256: too many taps
        ((600, 600), {"longest_edge": 400}),
        ((600, 600), {"do_resize": False}),
    ],
)
def test_what_does_not_fit_the_device(size, options):
    tiling = dataclasses.replace(SMALL, **options)
    height, width = size
    assert bucket_side(plan_tiles(height, width, tiling), tiling) is None


def test_padding_to_a_bucket():
    image = black_and_white(700, 1030)
    padded = prepare_image(image, form="banded").pixels
    assert isinstance(padded, np.ndarray)
    assert padded.shape == (2048, 2048, 3)
    assert np.array_equal(padded[:700, :1030], image)
    assert not padded[700:].any()
    assert not padded[:, 1030:].any()
    assert padded.ctypes.data % 64 == 0


@pytest.mark.parametrize("first", [False, True])
def test_a_new_row_of_the_resamplers_is_used_on_device_and_host(first, monkeypatch):
    """Weights of 8 bits, and one order of passes for every size; a bucket's program knows only one for resize 2."""
    row = Resampler(weight_bits=lambda largest: 8, vertical_first=lambda in_size, out_size: first)
    name = f"toy, {first}"  # of its own: programs are cached by name
    monkeypatch.setitem(RESAMPLERS, name, row)
    small = dataclasses.replace(SMALL, longest_edge=250)  # both passes of resize 2 run: to 256, and to whole tiles
    tiling = dataclasses.replace(small, resampler=name)
    for size in ((60, 64), (300, 451), (451, 300), (100, 900)):
        image = black_and_white(*size)
        expected = tile_image_host(image, tiling)
        assert_same_bytes(tile_image(image, tiling), expected)
        assert_same_bytes(tile_image(jax.numpy.asarray(image), tiling), expected)
        assert not np.array_equal(expected, tile_image_host(image, small))


@pytest.mark.parametrize(
    "tiling", [SMALL, TilingConfig(do_image_splitting=False), TilingConfig(do_resize=False), TilingConfig()]
)
@pytest.mark.parametrize(("height", "width"), [(300, 900), (1000, 7), (512, 512)])
def test_packed_steps_are_the_steps(tiling, height, width):
    steps = padded_steps(plan_tiles(height, width, tiling), tiling, 1024)
    assert steps is not None
    packed = pack_steps(steps)
    assert [one.dtype for one in jax.tree.leaves(packed)] == [np.int32]
    unpack: Any = jax.jit(lambda packed: packed.unpack())
    got = unpack(packed)
    assert jax.tree.structure(got) == jax.tree.structure(steps)
    for mine, own in zip(jax.tree.leaves(got), jax.tree.leaves(steps), strict=True):
        assert mine.dtype == own.dtype
        assert np.array_equal(mine, own)
