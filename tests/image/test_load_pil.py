"""load_image of PIL images: every mode and transparency, as the reference converts them."""

import warnings

import pytest
from PIL import Image

from multipatch_jax.image import ImageError, load_image
from tests.helpers.image_files import assert_same_pixels, encode, random_image, reference_rgb

MODES = """1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA PA RGBX RGBa I;16 I;16L I;16B I;16N""".split()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (700, 600), (300_000, 2)])
def test_every_mode_equals_the_reference(mode, size):
    image = random_image(mode, *size)  # the last two sizes are converted in more than one strip
    assert_same_pixels(load_image(image), reference_rgb(image))


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("L", 3), ("RGB", (3, 4, 5)), ("1", 1), ("I;16", 3), ("P", 3), ("P", bytes(range(256))), ("P", bytes(7))],
)
def test_transparency_info_equals_the_reference(mode, transparency):
    image = random_image(mode, 30, 20)
    if mode != "1":
        image.paste(tuple(transparency) if mode == "RGB" else 3, (0, 0, 15, 10))
    image.info["transparency"] = transparency
    expected = reference_rgb(image.copy())
    assert (expected >= 250).all(-1).sum() >= 150  # the transparent part is white, or nearly
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_pixels(load_image(image), expected)


def test_a_pil_image_is_left_as_it_was():
    image = random_image("P", 30, 20)
    image.info["transparency"] = bytes(range(256))
    image.getexif()[0x0112] = 6
    before, info = image.copy(), dict(image.info)
    load_image(image, exif_transpose=True)
    assert image == before
    assert image.info == info
    assert image.getexif()[0x0112] == 6


def test_premultiplied_grey_is_refused_as_by_the_reference():
    image = Image.new("La", (3, 2))
    with pytest.raises(ValueError, match="conversion from La"):
        reference_rgb(image)
    with pytest.raises(ImageError, match="PIL image cannot be decoded: ValueError: conversion from La"):
        load_image(image)


def test_pil_images_that_cannot_give_pixels(tmp_path):
    with pytest.raises(ImageError, match="at least one pixel, got 0 x 5"):
        load_image(Image.new("RGB", (0, 5)))
    closed = Image.new("RGB", (2, 2))
    closed.close()
    with pytest.raises(ImageError, match="PIL image cannot be decoded: ValueError: Operation on closed image"):
        load_image(closed)
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(random_image("RGB", 60, 40), "JPEG")[:-900])
    with Image.open(path) as lazy, pytest.raises(ImageError, match=r"PIL image '.*cut.jpg' cannot be decoded: OSError"):
        load_image(lazy)
