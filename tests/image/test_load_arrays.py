"""load_image of arrays: uint8 and floats, as the reference converts them, and what is refused."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from transformers.image_transforms import to_pil_image

from multipatch_jax.image import ImageError, load, load_image
from multipatch_jax.image import open as open_file
from tests.helpers.image_files import assert_same_pixels, reference_rgb, rng

FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
SIDES = st.integers(1, 24)


@settings(deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from([1, 3, 4]))
def test_uint8_arrays_equal_the_reference(data, height, width, channels):
    array = data.draw(hnp.arrays(np.uint8, (height, width, channels)))
    expected = reference_rgb(array, input_data_format="channels_last")
    for source in (array, jnp.asarray(array), np.asfortranarray(array)):
        assert_same_pixels(load_image(source), expected)
    flipped = np.ascontiguousarray(expected[::-1, ::-1])
    assert_same_pixels(load_image(array[::-1, ::-1]), flipped)


def test_rgba_arrays_equal_pillow_for_every_colour_and_alpha():
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    array = np.stack([value, value, value, alpha], -1)
    assert_same_pixels(load_image(array), reference_rgb(Image.fromarray(array)))
    assert_same_pixels(load_image(array), reference_rgb(array))


@settings(deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from([1, 3, 4]), st.sampled_from(FLOATS))
def test_float_arrays_equal_the_reference(data, height, width, channels, dtype):
    source = np.float64 if dtype == ml_dtypes.bfloat16 else dtype
    bits: Any = np.dtype(source).itemsize * 8
    elements = st.floats(0, 1, width=bits)
    array = data.draw(hnp.arrays(source, (height, width, channels), elements=elements)).astype(dtype)
    same = array.astype(np.float32) if dtype == ml_dtypes.bfloat16 else array  # the reference takes no bfloat16
    rgb = reference_rgb(same, input_data_format="channels_last")
    expected = np.array(to_pil_image(rgb, do_rescale=True, input_data_format="channels_last"))
    assert_same_pixels(load_image(array), expected)
    if dtype != np.float64:
        assert_same_pixels(load_image(jnp.asarray(array)), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_truncated(dtype):
    array = np.array([0, 1, 0.5, 0.998, 0.25, 0.001], dtype).reshape(2, 1, 3)
    assert load_image(array).tolist() == [[[0, 255, 127]], [[254, 63, 0]]]


def test_the_product_is_rounded_to_float32_before_truncation_as_in_the_reference():
    array = np.full((1, 1, 3), np.nextafter(1, 0))
    expected = np.array(to_pil_image(array, do_rescale=True, input_data_format="channels_last"))
    assert expected.tolist() == [[[255, 255, 255]]]
    assert_same_pixels(load_image(array), expected)


def test_zeros_and_ones_are_black_and_white():
    array = np.zeros((2, 1, 3), np.float32)  # the reference takes floats that are whole numbers for 0..255
    array[1] = 1
    assert load_image(array).tolist() == [[[0, 0, 0]], [[255, 255, 255]]]


def test_a_contiguous_rgb_array_is_not_copied():
    array = rng().integers(0, 256, (5, 7, 3), np.uint8)
    assert np.shares_memory(load_image(array), array)


def test_channels_are_last_however_the_shape_looks():
    array = rng().integers(0, 256, (3, 5, 3), np.uint8)  # the reference takes this one for channels-first
    assert_same_pixels(load_image(array), array)
    array = rng().integers(0, 256, (1, 4, 1), np.uint8)
    assert_same_pixels(load_image(array), np.repeat(array, 3, -1))


U8 = np.uint8


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 7), U8), r"got shape \(5, 7\): a grey image needs its channel axis, x\[..., None\]"),
        (np.zeros((3, 5, 7), U8), r"\(3, 5, 7\): if channels come first, use np.moveaxis\(x, 0, -1\)"),
        (np.zeros((1, 5, 7), U8), r"np.moveaxis"),
        (np.zeros((4, 5, 7), np.float32), r"np.moveaxis"),
        (np.zeros((5, 7, 2), U8), r"C = 1, 3 or 4, got shape \(5, 7, 2\)\."),
        (np.zeros((5, 7, 5), U8), r"got shape \(5, 7, 5\)\."),
        (np.zeros((2, 5, 7, 3), U8), r"\(2, 5, 7, 3\): pass one image at a time"),
        (np.zeros((), U8), r"got shape \(\)\."),
        (np.zeros((0, 7, 3), U8), r"at least one pixel, got an array of shape \(0, 7, 3\)"),
        (np.zeros((5, 0, 4), np.float32), r"at least one pixel"),
        (np.zeros((5, 7, 3), np.int64), r"got int64: if its values are 0 to 255, use x.astype\(np.uint8\)"),
        (np.zeros((5, 7, 3), np.uint16), r"got uint16"),
        (np.zeros((5, 7, 3), bool), r"got bool: if True is white, use x.astype\(np.uint8\) \* 255\."),
        (np.zeros((5, 7, 3), np.complex64), r"got complex64"),
        (np.zeros((5, 7, 3), object), r"got object"),
        (np.full((5, 7, 3), 1.001, np.float32), r"must lie in \[0, 1\], got values from 1.001"),
        (np.full((5, 7, 3), 255.0), r"from 255.0 to 255.0: if they are 0 to 255, use x.astype\(np.uint8\)"),
        (np.full((5, 7, 3), -1e-7), r"must lie in \[0, 1\]"),
        (np.full((5, 7, 3), np.inf, np.float16), r"to inf"),
        (np.full((5, 7, 1), np.nan, np.float16), r"from nan to nan"),
        (np.r_[np.nan, np.zeros(5)].reshape(1, 2, 3), r"from nan to nan"),
        (np.r_[np.nan, np.zeros(5)].reshape(1, 2, 3).astype(ml_dtypes.bfloat16), r"from nan to nan"),
        (np.full((5, 7, 4), 2, ml_dtypes.bfloat16), r"must lie in \[0, 1\], got values from 2.0 to 2.0"),
    ],
    ids=lambda x: f"{x.shape}-{x.dtype}" if isinstance(x, np.ndarray) else "",
)
def test_arrays_that_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array)


def test_jax_arrays_are_refused_like_numpy_ones():
    with pytest.raises(ImageError, match=r"np\.moveaxis"):
        load_image(jnp.zeros((3, 5, 7), jnp.uint8))
    with pytest.raises(jax.errors.TracerArrayConversionError):  # JAX's own error
        jax.jit(load_image)(jnp.zeros((5, 7, 3), jnp.uint8))


def test_no_jax_is_imported():
    """Decoding needs no device, so its two files import no JAX."""
    for module in (load, open_file):
        assert not re.search(r"^\s*(import|from) (jax|torch)\b", Path(str(module.__file__)).read_text(), re.MULTILINE)
