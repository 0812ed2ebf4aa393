"""Tiles against the reference's own, in every byte, on the host and on the device; buckets; normalisation."""

import dataclasses
import functools
import multiprocessing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from multipatch_jax.config import TilingConfig
from multipatch_jax.image import (
    bucket_of,
    fits_bucket,
    normalize,
    pad_to_bucket,
    plan_tiles,
    tile_image,
    tile_image_host,
    tile_padded,
    tiling_steps,
)
from multipatch_jax.image import tile as tile_module

SMALL = TilingConfig(longest_edge=256, tile_size=64, tokens_per_tile=16)
FULL = TilingConfig()


def reference_tiles(image, tiling):
    """uint8 (N, M, M, 3) of transformers' processor, which knows neither `upscale` nor `global_tile`."""
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": tiling.longest_edge},
        max_image_size={"longest_edge": tiling.tile_size},
        resample=Image.Resampling[tiling.filter.upper()],
        do_resize=tiling.do_resize and (tiling.upscale or max(image.shape[:2]) > tiling.longest_edge),
        do_image_splitting=tiling.do_image_splitting,
        do_rescale=False,
        do_normalize=False,
    )
    tiles = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
    assert tiles.dtype == np.uint8
    return tiles if tiling.global_tile or len(tiles) == 1 else tiles[:-1]


def tiles_by(image, tiling, one_resize):
    """The reference's steps around another resize."""
    plan, tile = plan_tiles(*image.shape[:2], tiling), tiling.tile_size
    image = one_resize(image, plan.resized)
    if not tiling.do_image_splitting:
        return one_resize(image, (tile, tile))[None]
    image = one_resize(image, plan.stretched)
    tiles = [
        image[y : y + tile, x : x + tile] for y in range(0, len(image), tile) for x in range(0, image.shape[1], tile)
    ]
    return np.stack(tiles + ([one_resize(image, (tile, tile))] if len(tiles) > 1 else []))


def pillow_12(image, size):
    for shape in ((image.shape[0], size[1]), size):
        image = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.LANCZOS))
    return image


def torch_lanczos(image, size):
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(x, size=size, mode="lanczos", antialias=True)[0].permute(1, 2, 0).numpy()


@functools.cache
def photographs():
    china, flower = load_sample_images().images
    return [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.retina(), china, flower]


def enlarged(photo, height, width):
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))


def noise(height, width, seed=0):
    """Black and white: what tells resamplers apart best."""
    return np.random.default_rng(seed).integers(0, 2, (height, width, 3), np.uint8) * 255


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
    images += [noise(*size) for size in ODD_SIZES]
    images += [gradient(400, 533), gradient(90, 1000), checkerboard(640, 480), checkerboard(480, 640)]
    images += [noise(*np.random.default_rng(seed).integers(1, 1024, 2), seed) for seed in range(12)]
    return images


def assert_same(got, expected):
    assert got.shape == expected.shape
    assert got.dtype == np.uint8
    differing = np.count_nonzero(np.asarray(got) != expected)
    assert differing == 0, f"{differing} of {expected.size} bytes differ"


# ---------------------------------------------------------------------------------------------------------------------
# Against the reference.


def test_small_tiles_are_the_references():
    """And one program serves all images of a bucket and a number of tiles, be they 3 x 4 or 4 x 3."""
    images = small_images()
    assert len(images) >= 60
    tile_module._tile_padded.clear_cache()
    programs, grids = set(), set()
    for image in images:
        expected = reference_tiles(image, SMALL)
        assert_same(tile_image_host(image, SMALL), expected)
        assert_same(tile_image(image, SMALL), expected)
        plan = plan_tiles(*image.shape[:2], SMALL)
        programs.add((bucket_of(*image.shape[:2]), plan.num_tiles))
        grids.add((bucket_of(*image.shape[:2]), plan.rows, plan.cols))
    assert tile_module._tile_padded._cache_size() == len(programs) < len(grids)


@pytest.mark.parametrize(("index", "implementation"), [(25, "gather"), (60, "banded")])
def test_exact_shapes_on_the_device(index, implementation):
    image = small_images()[index]
    got = tile_image(jnp.asarray(image), SMALL, implementation=implementation)
    assert_same(got, reference_tiles(image, SMALL))


FULL_SIZES = {  # and whether to try the device too: bucket and number of tiles make a program
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


@pytest.mark.parametrize(("size", "on_device"), FULL_SIZES.items())
def test_full_size_tiles_are_the_references(size, on_device):
    photos = photographs()
    image = enlarged(photos[sum(size) % len(photos)], *size) if min(size) > 40 else noise(*size)
    expected = reference_tiles(image, FULL)
    assert_same(tile_image_host(image), expected)
    if on_device:
        assert_same(tile_image(image), expected)


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
    "over 4 x 4": {"longest_edge": 400},  # through the host
}


@pytest.mark.parametrize("options", OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_other_configurations(options):
    tiling = dataclasses.replace(SMALL, **options)
    images = [photographs()[1], photographs()[3].swapaxes(0, 1), noise(90, 40), noise(33, 200), noise(20, 20)]
    for image in images:
        assert_same(tile_image_host(image, tiling), reference_tiles(image, tiling))
    tall = images[2]
    assert_same(tile_image(tall, tiling), reference_tiles(tall, tiling))
    if tiling.filter == "lanczos":
        assert_same(tile_image(jnp.asarray(tall), tiling), reference_tiles(tall, tiling))


@pytest.mark.parametrize(("resampler", "one_resize"), [("pillow12", pillow_12), ("torchvision", torch_lanczos)])
@pytest.mark.parametrize("splitting", [True, False])
def test_other_resamplers(resampler, one_resize, splitting):
    tiling = dataclasses.replace(SMALL, resampler=resampler, do_image_splitting=splitting)
    for image in [*photographs()[:3], *(noise(*size) for size in ODD_SIZES)]:
        expected = tiles_by(image, tiling, one_resize)
        assert_same(tile_image_host(image, tiling), expected)
        if len(expected) in (1, 13) and max(image.shape) <= 1024:  # these share a program
            assert_same(tile_image(image, tiling), expected)
    tall = noise(700, 200)
    expected = tiles_by(tall, tiling, one_resize)
    assert not np.array_equal(expected, tile_image_host(tall, dataclasses.replace(tiling, resampler="pillow")))
    if not splitting:
        assert_same(tile_image(jnp.asarray(tall), tiling), expected)


def test_a_photograph_by_the_other_resamplers_at_full_size():
    image = enlarged(photographs()[0], 1900, 800)
    for resampler, one_resize in (("pillow12", pillow_12), ("torchvision", torch_lanczos)):
        tiling = TilingConfig(resampler=resampler)
        expected = tiles_by(image, tiling, one_resize)
        assert_same(tile_image_host(image, tiling), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 9))
def test_host_tiles_of_any_size(height, width, seed):
    image = noise(height, width, seed)
    assert_same(tile_image_host(image, SMALL), reference_tiles(image, SMALL))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 9), st.sampled_from(["lanczos", "bicubic"]))
def test_tiles_of_any_size(height, width, seed, name):
    tiling = dataclasses.replace(SMALL, filter=name)
    image = noise(height, width, seed)
    expected = reference_tiles(image, tiling)
    assert_same(tile_image_host(image, tiling), expected)
    assert_same(tile_image(image, tiling), expected)


# ---------------------------------------------------------------------------------------------------------------------
# One program for many images.


@pytest.mark.parametrize("implementation", ["gather", "banded"])
def test_one_compilation_for_a_bucket_and_a_number_of_tiles(implementation):
    tiles_of = jax.jit(
        functools.partial(tile_padded, num_tiles=13, tiling=SMALL, implementation=implementation),
    )
    rng = np.random.default_rng(0)
    grids = set()
    for seed in range(40):
        shorter = int(rng.integers(60, 600))
        height, width = rng.permutation([shorter, int(shorter * rng.uniform(1.34, 1.7))])
        image, plan, bucket = noise(height, width, seed), plan_tiles(height, width, SMALL), (1024, 1024)
        padded = rng.integers(0, 256, (*bucket, 3), np.uint8)  # what is in the padding must not show
        padded[:height, :width] = image
        assert_same(tiles_of(padded, tiling_steps(plan, SMALL, bucket)), tile_image_host(image, SMALL))
        grids.add((plan.rows, plan.cols))
    assert grids == {(3, 4), (4, 3)}
    assert tiles_of._cache_size() == 1


def test_room_for_more_tiles_than_the_image_has():
    """As the stream asks for them: the plan's come first."""
    tiles_of = jax.jit(functools.partial(tile_padded, num_tiles=17, tiling=SMALL))
    for size in ((60, 64), (300, 451), (100, 900), (500, 500), (400, 170), (64, 64)):
        image = noise(*size)
        plan = plan_tiles(*size, SMALL)
        got = tiles_of(pad_to_bucket(image), tiling_steps(plan, SMALL, bucket_of(*size)))
        assert got.shape == (17, 64, 64, 3)
        assert_same(got[: plan.num_tiles], tile_image_host(image, SMALL))
    assert tiles_of._cache_size() == 1


def test_buckets():
    assert bucket_of(1, 1) == bucket_of(1024, 1024) == bucket_of(1024, 3) == (1024, 1024)
    assert bucket_of(1025, 1) == bucket_of(5, 2048) == (2048, 2048)
    assert bucket_of(2049, 4096) == (4096, 4096)
    with pytest.raises(ValueError, match="at most 4096 pixels a side, got 4097 x 10"):
        bucket_of(4097, 10)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(["lanczos", "bicubic", "bilinear"]))
def test_all_images_up_to_4096_fit_the_device(height, width, name):
    tiling = TilingConfig(filter=name)
    assert fits_bucket(plan_tiles(height, width, tiling), tiling)


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
    assert not fits_bucket(plan_tiles(*size, tiling), tiling)


def test_padding_to_a_bucket():
    image = noise(700, 1030)
    padded = pad_to_bucket(image)
    assert padded.shape == (2048, 2048, 3)
    assert np.array_equal(padded[:700, :1030], image)
    assert not padded[700:].any()
    assert not padded[:, 1030:].any()
    assert padded.ctypes.data % 64 == 0


# ---------------------------------------------------------------------------------------------------------------------
# Inside other people's code.


def test_inside_jit_and_vmap():
    images = np.stack([noise(90, 130, seed) for seed in range(3)])
    expected = np.stack([reference_tiles(image, SMALL) for image in images])
    assert_same(jax.jit(lambda x: tile_image(x, SMALL))(images[0]), expected[0])
    assert_same(jax.vmap(lambda x: tile_image(x, SMALL))(jnp.asarray(images)), expected)
    assert_same(jax.jit(jax.vmap(lambda x: tile_image(x, SMALL, implementation="banded")))(images), expected)


def test_gradients_stop_at_bytes():
    def loss(scale, image):
        return (scale * normalize(tile_image(image, SMALL))).sum()

    image = jnp.asarray(photographs()[1])
    expected = np.asarray(normalize(jnp.asarray(reference_tiles(photographs()[1], SMALL)))).sum(dtype=np.float64)
    assert jax.jit(jax.grad(loss))(1.0, image) == pytest.approx(float(expected), rel=1e-3)


def tiles_in_a_process(image):
    return tile_image_host(image, SMALL)


def test_in_a_forked_process():
    """As data loaders work: forked when threads and JAX are already running."""
    image = photographs()[2]
    expected = np.asarray(tile_image(image, SMALL))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for got in pool.map(tiles_in_a_process, [image] * 4):
            assert_same(got, expected)


def test_the_host_does_not_call_jax(monkeypatch):
    for name in ("stack", "asarray", "zeros"):
        monkeypatch.delattr(jnp, name)
    monkeypatch.delattr(jax, "jit")
    assert len(tile_image_host(noise(50, 70), dataclasses.replace(SMALL, resampler="torchvision"))) == 13


def test_arrays_of_all_memory_layouts():
    image = np.asfortranarray(photographs()[1])
    view = np.flip(photographs()[1], axis=1)
    for one in (image, view, view.swapaxes(0, 1)):
        expected = reference_tiles(np.ascontiguousarray(one), SMALL)
        assert_same(tile_image_host(one, SMALL), expected)
        assert_same(tile_image(one, SMALL), expected)


def test_tiles_are_not_the_callers_memory():
    image = noise(64, 64)
    for splitting in (True, False):
        tiling = TilingConfig(64, 64, 16, do_image_splitting=splitting)
        tiles = tile_image_host(image, tiling)
        assert np.array_equal(tiles[0], image)
        assert not np.shares_memory(tiles, image)
    read_only = np.asarray(Image.fromarray(image))
    assert not read_only.flags.writeable
    assert_same(tile_image(read_only, tiling), image[None])


@pytest.mark.parametrize("function", [tile_image, tile_image_host])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 30), np.uint8), r"uint8 of shape \(H, W, 3\).* got uint8 of shape \(20, 30\)\.$"),
        (np.zeros((20, 30, 4), np.uint8), r"got uint8 of shape \(20, 30, 4\)"),
        (np.zeros((20, 30, 3), np.float32), "got float32 of shape"),
        (np.zeros((3, 20, 30), np.uint8), r"Channels come last here: np\.moveaxis\(x, 0, -1\)"),
        (Image.new("RGB", (5, 5)), "load_image makes it, got Image"),
        ("photo.jpg", "got str"),
        (np.zeros((0, 30, 3), np.uint8), "positive number of pixels"),
    ],
)
def test_what_is_no_image_is_refused(function, image, message):
    with pytest.raises(ValueError, match=message):
        function(image, SMALL)


def test_the_host_refuses_jax_arrays():
    with pytest.raises(ValueError, match="Expected a NumPy array"):
        tile_image_host(jnp.zeros((20, 30, 3), jnp.uint8), SMALL)


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation.


def test_normalisation_is_the_references():
    x = np.arange(256, dtype=np.uint8)
    torchvision = ((torch.arange(256, dtype=torch.float32) - 127.5) / 127.5).numpy()
    pil = ((x.astype(np.float64) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
    for function in (normalize, jax.jit(normalize), jax.vmap(normalize)):
        got = np.asarray(function(jnp.asarray(x)))
        assert got.dtype == np.float32
        assert np.array_equal(got, torchvision)
        assert np.abs(got - pil).max() <= 6e-8
    assert (got.min(), got.max()) == (-1, 1)


def test_normalised_tiles_are_the_references():
    processor = Idefics3ImageProcessorPil(size={"longest_edge": 256}, max_image_size={"longest_edge": 64})
    expected = processor(Image.fromarray(photographs()[1]), return_tensors="np")["pixel_values"][0].transpose(
        0, 2, 3, 1
    )
    got = np.asarray(normalize(tile_image(photographs()[1], SMALL)))
    assert np.abs(got - expected).max() <= 6e-8
