"""The resize against Pillow's and torch's own in every byte; the weights against a scalar copy of their arithmetic."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multipatch_jax.image import filters as resample
from multipatch_jax.image.filters import AxisWeights, axis_weights, pad_axis_weights, vertical_first
from multipatch_jax.image.host import resize_host
from multipatch_jax.image.resize import ResizeStep, resize

FILTERS = ("lanczos", "bicubic", "bilinear")
filters = st.sampled_from(FILTERS)
sides = st.one_of(st.integers(1, 12), st.integers(1, 260))


def random_pixels(height, width, seed=0):
    """Black and white noise, which tells every two resizes apart, over more and more of an image of grey noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    black_and_white = rng.random((height, width, 1)) < rng.random()
    return np.where(black_and_white, image // 128 * 255, image).astype(np.uint8)


def pillow(image, size, name):
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling[name.upper()]))


def torch_antialiased(image, size, name, contiguous=False):
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]  # channels last, as torchvision makes it of an array
    if contiguous and min(*image.shape[:2], *size) > 1:  # of one pixel, torch 2.13 fails an assertion of its own
        x = x.contiguous()
    return torch.nn.functional.interpolate(x, size=size, mode=name, antialias=True)[0].permute(1, 2, 0).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Weights.


def scalar_kernel(name, x):
    if name == "lanczos":
        sinc = [1.0 if y == 0 else math.sin(y * math.pi) / (y * math.pi) for y in (x, x / 3)]
        return sinc[0] * sinc[1] if -3 <= x < 3 else 0.0
    x = abs(x)
    if name == "bilinear":
        return 1 - x if x < 1 else 0.0
    a = -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def scalar_weights(in_size, out_size, name, resampler):
    """Rows of (first source pixel, integer weights), written from Pillow's C, and for "torchvision" torch's C++."""
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = {"lanczos": 3, "bicubic": 2, "bilinear": 1}[name] * stretch
    rows = []
    for i in range(out_size):
        center = (i + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), in_size)
        row = [scalar_kernel(name, (j + low - center + 0.5) * (1.0 / stretch)) for j in range(high - low)]
        total = 0.0
        for weight in row:
            total += weight
        rows.append((low, [weight / total for weight in row]))
    bits = 22
    if resampler == "torchvision":
        largest = max(max(row) for _, row in rows)
        bits = next((b for b in range(22) if int(0.5 + largest * 2 ** (b + 1)) >= 2**15), 22)
    return [(low, [int(w * 2**bits + (-0.5 if w < 0 else 0.5)) * 2 ** (22 - bits) for w in row]) for low, row in rows]


@settings(max_examples=120, deadline=None)
@given(st.one_of(sides, st.integers(1, 4096)), sides, filters, st.sampled_from(("pillow", "torchvision")))
def test_weights_are_the_references(in_size, out_size, name, resampler):
    starts, weights = axis_weights(in_size, out_size, name, resampler)
    assert starts.dtype == weights.dtype == np.int32
    if in_size == out_size:
        assert starts.tolist() == list(range(in_size))
        assert weights.tolist() == [[1 << 22]] * in_size
        return
    expected = scalar_weights(in_size, out_size, name, resampler)
    assert weights.shape[1] == max(len(row) for _, row in expected)
    for start, row, (low, integers) in zip(starts, weights.tolist(), expected, strict=True):
        assert start == low
        assert row == integers + [0] * (len(row) - len(integers))


@pytest.mark.parametrize(("in_size", "out_size"), [(4000, 2048), (2048, 512), (4096, 2048), (640, 2048), (3, 2048)])
def test_weights_of_the_usual_sizes(in_size, out_size):
    starts, weights = axis_weights(in_size, out_size)
    for start, row, (low, integers) in zip(
        starts, weights.tolist(), scalar_weights(in_size, out_size, "lanczos", "pillow"), strict=True
    ):
        assert (start, row[: len(integers)]) == (low, integers)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 3000), filters, st.sampled_from(("pillow", "torchvision")))
def test_no_sum_overflows(in_size, out_size, name, resampler):
    weights = axis_weights(in_size, out_size, name, resampler).weights.astype(np.int64)
    half = 1 << 21
    assert 255 * np.maximum(weights, 0).sum(axis=1).max() + half < 2**31
    assert 255 * np.minimum(weights, 0).sum(axis=1).min() + half >= -(2**31)


def test_cached_weights_cannot_be_changed():
    for array in axis_weights(50, 20):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


# ---------------------------------------------------------------------------------------------------------------------
# Whole resizes on the host.


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, filters, st.integers(0, 99))
def test_resize_equals_pillow(height, width, out_height, out_width, name, seed):
    image = random_pixels(height, width, seed)
    size = (out_height, out_width)
    assert np.array_equal(resize_host(image, size, name, "pillow"), pillow(image, size, name))
    twice = pillow(pillow(image, (height, out_width), name), size, name)  # horizontal first, as up to Pillow 12
    assert np.array_equal(resize_host(image, size, name, "pillow12"), twice)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, filters, st.booleans(), st.integers(0, 99))
def test_resize_equals_torch(height, width, out_height, out_width, name, contiguous, seed):
    image = random_pixels(height, width, seed)
    size = (out_height, out_width)
    expected = torch_antialiased(image, size, name, contiguous)
    assert np.array_equal(resize_host(image, size, name, "torchvision"), expected)


def test_the_order_of_passes_is_pillows():
    """Over hundreds of sizes for which the two orders differ, many of them at the rule's very edge."""
    rng = np.random.default_rng(0)
    told_apart = {False: 0, True: 0}
    for _ in range(1500):
        height, width, out_height, out_width = (int(side) for side in rng.integers(1, 90, 4))
        if rng.random() < 0.5:
            out_height = max(height - 2 * (width - out_width) + int(rng.integers(-1, 3)), 1)
        image, size = random_pixels(height, width), (out_height, out_width)
        horizontal = pillow(pillow(image, (height, out_width), "lanczos"), size, "lanczos")
        vertical = pillow(pillow(image, (out_height, width), "lanczos"), size, "lanczos")
        if np.array_equal(horizontal, vertical):
            continue
        first = vertical_first((height, width), size, "pillow")
        assert np.array_equal(pillow(image, size, "lanczos"), vertical if first else horizontal)
        told_apart[first] += 1
        assert not vertical_first((height, width), size, "pillow12")
        assert not vertical_first((height, width), size, "torchvision")
    assert min(told_apart.values()) > 200


# ---------------------------------------------------------------------------------------------------------------------
# Passes on the device.


def exact_plan(in_size, out_size, name="lanczos", resampler="pillow"):
    vertical, horizontal = (axis_weights(*size, name, resampler) for size in zip(in_size, out_size, strict=True))
    order = np.array(vertical_first(in_size, out_size, resampler))
    return ResizeStep(vertical, horizontal, np.array(in_size, np.int32), np.array(out_size, np.int32), order)


def padded_plan(in_size, out_size, side, taps, name="lanczos", resampler="pillow"):
    plan = exact_plan(in_size, out_size, name, resampler)
    vertical, horizontal = (pad_axis_weights(one, side, taps) for one in plan[:2])
    return plan._replace(vertical=vertical, horizontal=horizontal)


ODD_SIZES = [
    ((1, 1), (7, 9)),
    ((1, 50), (33, 20)),
    ((300, 451), (130, 200)),
    ((451, 30), (130, 300)),
    ((20, 30), (20, 55)),  # one pass only
    ((40, 30), (10, 30)),
    ((30, 40), (30, 40)),  # none
    ((300, 40), (64, 30)),  # vertical first
    ((127, 129), (128, 257)),
    ((600, 5), (40, 5)),
    ((3072, 3), (384, 3)),  # a scale of 8 exactly: the longest windows for the number of taps
]


@pytest.mark.parametrize(("in_size", "out_size"), ODD_SIZES)
@pytest.mark.parametrize("implementation", ["gather", "banded"])
def test_resize_on_the_device(in_size, out_size, implementation):
    image = random_pixels(*in_size)
    plan = exact_plan(in_size, out_size)
    got = jax.jit(lambda x: resize(x, plan, implementation=implementation))(image)
    assert got.dtype == jnp.uint8
    assert np.array_equal(got, pillow(image, out_size, "lanczos"))


@pytest.mark.parametrize("implementation", ["gather", "banded"])
@pytest.mark.parametrize("name", FILTERS)
def test_one_program_resizes_images_of_all_sizes(name, implementation):
    """Sizes, weights, order and skipped passes are data; what lies in the padding has no influence."""
    side, out_side, traces = 300, 200, []
    taps = math.ceil(2 * resample.SUPPORT[name] * 8) + 1

    @jax.jit
    def one_resize(x, plan):
        traces.append(1)
        return resize(x, plan, filter=name, implementation=implementation)

    rng = np.random.default_rng(0)
    orders, skips = set(), set()
    for seed in range(80):
        in_size, out_size = (tuple(int(n) for n in rng.integers(lowest, side, 2)) for lowest in (1, 20))
        out_size = tuple(min(max(out, -(-size // 8)), out_side) for out, size in zip(out_size, in_size, strict=True))
        if seed % 6 == 0:
            in_size = (out_size[0], in_size[1])
        if seed % 7 == 0:
            in_size = (in_size[0], out_size[1])
        resampler = ("pillow", "torchvision")[seed % 2]
        plan = padded_plan(in_size, out_size, out_side, taps, name, resampler)
        orders.add(bool(plan.vertical_first))
        skips.add(tuple(a == b for a, b in zip(in_size, out_size, strict=True)))
        padded = rng.integers(0, 256, (side, side, 3), np.uint8)
        image = random_pixels(*in_size, seed)
        padded[: in_size[0], : in_size[1]] = image
        got = np.asarray(one_resize(padded, plan))[: out_size[0], : out_size[1]]
        assert np.array_equal(got, resize_host(image, out_size, name, resampler)), (in_size, out_size)
    assert len(traces) == 1
    assert orders == {True, False}
    assert len(skips) == 4


@pytest.mark.parametrize(("in_size", "out_size"), [((700, 17), (129, 17)), ((17, 90), (17, 300))])
def test_gather_equals_banded(in_size, out_size):
    image, plan = random_pixels(*in_size), exact_plan(in_size, out_size, "bicubic", "torchvision")
    gather, banded = (
        jax.jit(functools.partial(resize, filter="bicubic", implementation=one))(image, plan)
        for one in ("gather", "banded")
    )
    assert np.array_equal(gather, banded)
    assert np.array_equal(gather, torch_antialiased(image, out_size, "bicubic"))


def test_too_many_taps_for_float32_are_gathered(monkeypatch):
    assert resample._MAX_BANDED_TAPS * 128 * 255 < 2**24
    monkeypatch.setattr(resample, "_MAX_BANDED_TAPS", 20)
    monkeypatch.setattr(resample, "_banded_pass", None)
    image, plan = random_pixels(40, 3), exact_plan((40, 3), (8, 3))
    assert plan.vertical.weights.shape[1] == 30
    assert np.array_equal(resize(jnp.asarray(image), plan, implementation="banded"), pillow(image, (8, 3), "lanczos"))


def test_resize_under_vmap():
    images = np.stack([random_pixels(40, 50, seed) for seed in range(3)])
    plan = exact_plan((40, 50), (25, 70))
    for implementation in ("gather", "banded"):
        got = jax.vmap(functools.partial(resize, plan=plan, implementation=implementation))(jnp.asarray(images))
        for one, image in zip(got, images, strict=True):
            assert np.array_equal(one, pillow(image, (25, 70), "lanczos"))


def test_padding_a_filter_adds_zeros():
    filter = axis_weights(50, 20)
    starts, weights = pad_axis_weights(filter, 32, 40)
    taps = filter.weights.shape[1]
    assert (starts.shape, weights.shape) == ((32,), (32, 40))
    assert np.array_equal(weights[:20, :taps], filter.weights)
    assert not weights[20:].any()
    assert not weights[:, taps:].any()
    assert (np.diff(starts) >= 0).all()  # the banded form takes a block's first start for its lowest


def test_the_implementation_suits_the_backend(monkeypatch):
    assert resample.default_resize_implementation() == {"cpu": "gather"}.get(jax.default_backend(), "banded")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert resample.default_resize_implementation() == "banded"


def test_starts_never_decrease():
    """As the banded form needs them."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        in_size, out_size = (int(n) for n in rng.integers(1, 3000, 2))
        filter: AxisWeights = axis_weights(in_size, out_size, FILTERS[rng.integers(3)])
        assert (np.diff(filter.starts) >= 0).all()
