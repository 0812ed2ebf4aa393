"""The device's resize, in each of its forms, against Pillow's and torch's own, in every byte."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipatch_jax.image import resize as resize_module
from multipatch_jax.image.resize import FORMS, default_resize_form, resize
from multipatch_jax.image.steps import ResizePlan, pad_axis_weights
from multipatch_jax.resamplers import FILTERS as FILTER_TABLE
from tests.helpers.images import mixed_noise
from tests.helpers.resizers import FILTERS, pillow, resize_host, torch_antialiased


def exact_step(in_size, out_size, name="lanczos", resampler="pillow"):
    return ResizePlan(in_size, out_size, name, resampler).arrays()


def padded_step(in_size, out_size, side, taps, name="lanczos", resampler="pillow"):
    step = exact_step(in_size, out_size, name, resampler)
    vertical, horizontal = (pad_axis_weights(one, side, taps) for one in step[:2])
    return step._replace(vertical=vertical, horizontal=horizontal)


ODD_SIZES = [
    ((1, 1), (7, 9)),
    ((1, 50), (33, 20)),
    ((300, 451), (130, 200)),
    ((451, 30), (130, 300)),
    ((20, 30), (20, 55)),  # one pass only
    ((40, 30), (10, 30)),
    ((30, 40), (30, 40)),  # no pass
    ((300, 40), (64, 30)),  # vertical first
    ((127, 129), (128, 257)),
    ((600, 5), (40, 5)),
    ((3072, 3), (384, 3)),  # a scale of 8 exactly: the longest windows for the number of taps
]


@pytest.mark.parametrize(("in_size", "out_size"), ODD_SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_resize_on_the_device(in_size, out_size, form):
    image = mixed_noise(*in_size)
    step = exact_step(in_size, out_size)
    got = jax.jit(lambda x: resize(x, step, form=form))(image)
    assert got.dtype == jnp.uint8
    assert np.array_equal(got, pillow(image, out_size, "lanczos"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FILTERS)
def test_one_program_resizes_images_of_all_sizes(name, form):
    """Sizes, weights, order and skipped passes are data; the padding has no influence."""
    side, out_side, traces = 300, 200, []
    taps = math.ceil(2 * FILTER_TABLE[name].support * 8) + 1

    @jax.jit
    def one_resize(x, step):
        traces.append(1)
        return resize(x, step, filter=name, form=form)

    rng = np.random.default_rng(0)
    orders, skips = set(), set()
    for seed in range(80):
        height, width, out_height, out_width = (int(n) for low in (1, 20) for n in rng.integers(low, side, 2))
        out_height = min(max(out_height, -(-height // 8)), out_side)
        out_width = min(max(out_width, -(-width // 8)), out_side)
        if seed % 6 == 0:
            height = out_height
        if seed % 7 == 0:
            width = out_width
        in_size, out_size = (height, width), (out_height, out_width)
        resampler = ("pillow", "torchvision")[seed % 2]
        step = padded_step(in_size, out_size, out_side, taps, name, resampler)
        orders.add(bool(step.vertical_first))
        skips.add(tuple(a == b for a, b in zip(in_size, out_size, strict=True)))
        padded = rng.integers(0, 256, (side, side, 3), np.uint8)
        image = mixed_noise(height, width, seed)
        padded[:height, :width] = image
        got = np.asarray(one_resize(padded, step))[:out_height, :out_width]
        assert np.array_equal(got, resize_host(image, out_size, name, resampler)), (in_size, out_size)
    assert len(traces) == 1
    assert orders == {True, False}
    assert len(skips) == 4


@pytest.mark.parametrize(("in_size", "out_size"), [((700, 17), (129, 17)), ((17, 90), (17, 300))])
def test_all_forms_are_equal(in_size, out_size):
    image, step = mixed_noise(*in_size), exact_step(in_size, out_size, "bicubic", "torchvision")
    for form in FORMS:
        got = jax.jit(functools.partial(resize, filter="bicubic", form=form))(image, step)
        assert np.array_equal(got, torch_antialiased(image, out_size, "bicubic"))


@pytest.mark.parametrize("form", ["banded", "batched"])
def test_too_many_taps_for_float32_are_gathered(form, monkeypatch):
    assert resize_module.MAX_TAPS * 128 * 255 < 2**24
    monkeypatch.setattr(resize_module, "MAX_TAPS", 20)
    monkeypatch.setattr(resize_module, f"{form}_pass", None)
    image, step = mixed_noise(40, 3), exact_step((40, 3), (8, 3))
    assert step.vertical.weights.shape[1] == 30
    assert np.array_equal(resize(jnp.asarray(image), step, form=form), pillow(image, (8, 3), "lanczos"))


def test_resize_under_vmap():
    images = np.stack([mixed_noise(40, 50, seed) for seed in range(3)])
    step = exact_step((40, 50), (25, 70))
    for form in FORMS:
        got = jax.vmap(functools.partial(resize, step=step, form=form))(jnp.asarray(images))
        for one, image in zip(got, images, strict=True):
            assert np.array_equal(one, pillow(image, (25, 70), "lanczos"))


def test_the_form_suits_the_backend(monkeypatch):
    for platform, form in {"cpu": "gather", "tpu": "banded", "gpu": "batched", "cuda": "batched"}.items():
        assert default_resize_form(platform) == form
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert default_resize_form() == form
