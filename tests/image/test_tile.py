"""Tiles against the reference's own, in every byte, on the host and on the device."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multipatch_jax.config import TilingConfig
from multipatch_jax.image import bucket_side, tile, tile_image, tile_image_host
from tests.helpers.images import black_and_white, plan_of
from tests.helpers.resizers import pillow_12, torch_lanczos
from tests.helpers.tiling import SMALL, assert_same_bytes, photographs, reference_tiles

FULL = TilingConfig()


def tiles_by(image, tiling, one_resize):
    """The reference's steps, with another function for the resize."""
    plan, side = plan_of(image, tiling), tiling.tile_size
    image = one_resize(image, plan.resized)
    if not tiling.do_image_splitting:
        return one_resize(image, (side, side))[None]
    image = one_resize(image, plan.stretched)
    tiles = [
        image[y : y + side, x : x + side] for y in range(0, len(image), side) for x in range(0, image.shape[1], side)
    ]
    return np.stack(tiles + ([one_resize(image, (side, side))] if len(tiles) > 1 else []))


def enlarged(photo, height, width):
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))


def gradient(height, width):
    y, x = np.linspace(0, 255, height)[:, None], np.linspace(0, 255, width)
    return np.stack([y + 0 * x, x + 0 * y, (x + y) / 2], axis=-1).astype(np.uint8)


def checkerboard(height, width):
    return np.repeat((np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)


ODD_SIZES = [
    *((1, 1), (1, 2), (2, 1), (1, 100), (100, 1), (1, 900), (900, 1), (3, 7), (64, 64), (63, 65), (65, 64), (128, 64)),
    *((256, 192), (192, 256), (256, 256), (257, 256), (255, 256), (256, 100), (512, 512), (1024, 700), (700, 1024)),
    *((1025, 30), (30, 1025), (400, 180), (999, 333), (333, 999)),
]


@functools.cache
def small_images():
    """Over 60 images: photographs upright and on their side, noise, gradients, the odd sizes."""
    images = photographs() + [photo.swapaxes(0, 1) for photo in photographs()]
    images += [photo[: 80 + 40 * i, : 300 - 30 * i] for i, photo in enumerate(photographs())]
    images += [black_and_white(*size) for size in ODD_SIZES]
    images += [gradient(400, 533), gradient(90, 1000), checkerboard(640, 480), checkerboard(480, 640)]
    for seed in range(12):
        height, width = np.random.default_rng(seed).integers(1, 1024, 2)
        images.append(black_and_white(height, width, seed))
    return images


def test_small_tiles_are_the_references():
    """One program serves all images of a bucket and a number of tiles, whether 3 x 4 or 4 x 3."""
    images = small_images()
    assert len(images) >= 60
    program: Any = tile._tile_padded
    program.clear_cache()
    programs, grids = set(), set()
    for image in images:
        expected = reference_tiles(image, SMALL)
        assert_same_bytes(tile_image_host(image, SMALL), expected)
        assert_same_bytes(tile_image(image, SMALL), expected)
        plan = plan_of(image, SMALL)
        programs.add((bucket_side(plan, SMALL), plan.num_tiles))
        grids.add((bucket_side(plan, SMALL), plan.rows, plan.cols))
    assert program._cache_size() == len(programs) < len(grids)


@pytest.mark.gpu
@pytest.mark.parametrize(("index", "implementation"), [(25, "gather"), (60, "banded")])
def test_exact_shapes_on_the_device(index, implementation):
    image = small_images()[index]
    got = tile_image(jnp.asarray(image), SMALL, implementation=implementation)
    assert_same_bytes(got, reference_tiles(image, SMALL))


FULL_SIZES = {  # and whether to tile it on the device too, which takes a program for each bucket and number of tiles
    (3000, 4000): True,
    (4000, 3000): True,
    (2532, 1170): True,  # a telephone's screen: the vertical pass first, and 4 x 2 tiles
    (480, 640): True,
    (640, 480): True,
    (8000, 40): True,  # beyond every bucket
    (40, 8000): True,
    (1080, 1920): False,
    (1536, 2048): False,  # no resize at all before the global tile
    (100, 2048): False,
    (1, 1000): False,
    (1000, 1): False,
    (512, 512): False,
    (4096, 4096): False,
}


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "on_device"), FULL_SIZES.items())
def test_full_size_tiles_are_the_references(size, on_device):
    photos = photographs()
    image = enlarged(photos[sum(size) % len(photos)], *size) if min(size) > 40 else black_and_white(*size)
    expected = reference_tiles(image, FULL)
    assert_same_bytes(tile_image_host(image), expected)
    if on_device:
        assert_same_bytes(tile_image(image), expected)


OTHER_CONFIGS = {
    "bicubic": {"filter": "bicubic"},
    "bilinear": {"filter": "bilinear"},
    "no splitting": {"do_image_splitting": False},
    "no resizing": {"do_resize": False},
    "neither": {"do_resize": False, "do_image_splitting": False},
    "no global tile": {"global_tile": False},
    "no enlarging": {"upscale": False},
    "three tiles a side": {"longest_edge": 192},
    "one tile": {"longest_edge": 64},
    "no multiple": {"longest_edge": 150},
    "an odd tile": {"longest_edge": 121, "tile_size": 45},
    "over 4 x 4": {"longest_edge": 400},  # more than a bucket takes: tiled on the host
}


@pytest.mark.parametrize("options", OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_other_configurations(options):
    tiling = dataclasses.replace(SMALL, **options)
    images = [
        photographs()[1],
        photographs()[3].swapaxes(0, 1),
        black_and_white(90, 40),
        black_and_white(33, 200),
        black_and_white(20, 20),
    ]
    for image in images:
        assert_same_bytes(tile_image_host(image, tiling), reference_tiles(image, tiling))
    tall = images[2]
    assert_same_bytes(tile_image(tall, tiling), reference_tiles(tall, tiling))
    if tiling.filter == "lanczos":
        assert_same_bytes(tile_image(jnp.asarray(tall), tiling), reference_tiles(tall, tiling))


@pytest.mark.parametrize(("resampler", "one_resize"), [("pillow12", pillow_12), ("torchvision", torch_lanczos)])
@pytest.mark.parametrize("splitting", [True, False])
def test_other_resamplers(resampler, one_resize, splitting):
    tiling = dataclasses.replace(SMALL, resampler=resampler, do_image_splitting=splitting)
    for image in [*photographs()[:3], *(black_and_white(*size) for size in ODD_SIZES)]:
        expected = tiles_by(image, tiling, one_resize)
        assert_same_bytes(tile_image_host(image, tiling), expected)
        if len(expected) in (1, 13) and max(image.shape) <= 1024:  # these share a program
            assert_same_bytes(tile_image(image, tiling), expected)
    tall = black_and_white(700, 200)
    expected = tiles_by(tall, tiling, one_resize)
    assert not np.array_equal(expected, tile_image_host(tall, dataclasses.replace(tiling, resampler="pillow")))
    if not splitting:
        assert_same_bytes(tile_image(jnp.asarray(tall), tiling), expected)


def test_a_photograph_by_the_other_resamplers_at_full_size():
    image = enlarged(photographs()[0], 1900, 800)
    for resampler, one_resize in (("pillow12", pillow_12), ("torchvision", torch_lanczos)):
        tiling = TilingConfig(resampler=resampler)
        expected = tiles_by(image, tiling, one_resize)
        assert_same_bytes(tile_image_host(image, tiling), expected)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 9), st.sampled_from(["lanczos", "bicubic"]))
def test_tiles_of_any_size(height, width, seed, name):
    tiling = dataclasses.replace(SMALL, filter=name)
    image = black_and_white(height, width, seed)
    expected = reference_tiles(image, tiling)
    assert_same_bytes(tile_image_host(image, tiling), expected)
    assert_same_bytes(tile_image(image, tiling), expected)
