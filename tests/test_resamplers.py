"""The weights of one resampling pass against a scalar copy of the reference's arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.image.steps import pad_axis_weights
from multipatch_jax.resamplers import axis_weights
from tests.helpers.resizers import FILTERS, filters, sides


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


def test_padding_a_filter_adds_zeros():
    one = axis_weights(50, 20)
    starts, weights = pad_axis_weights(one, 32, 40)
    taps = one.weights.shape[1]
    assert (starts.shape, weights.shape) == ((32,), (32, 40))
    assert np.array_equal(weights[:20, :taps], one.weights)
    assert not weights[20:].any()
    assert not weights[:, taps:].any()
    assert (np.diff(starts) >= 0).all()  # the banded form takes a block's first start as its lowest


def test_starts_never_decrease():
    """The banded form relies on it."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        in_size, out_size = (int(n) for n in rng.integers(1, 3000, 2))
        one = axis_weights(in_size, out_size, FILTERS[rng.integers(3)])
        assert (np.diff(one.starts) >= 0).all()
