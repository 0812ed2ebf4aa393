"""load_image of files, bytes and file objects: every format, and what EXIF and animations say."""

import io
import sys
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.image_utils import load_image as reference_load_image

from multipatch_jax.image import ImageError, count_pixels, load_image
from tests.helpers.image_files import FILES, Stream, assert_same_pixels, encode, random_image, reference_rgb

SOURCES = {
    "a path as str": lambda path, _: str(path),
    "a `pathlib.Path`": lambda path, _: path,
    "`bytes`": lambda _, data: data,
    "`bytearray`": lambda _, data: bytearray(data),
    "`memoryview`": lambda _, data: memoryview(data),
    "a binary file object": lambda _, data: io.BytesIO(data),
    "a binary file object that cannot seek": lambda _, data: Stream(data),
}


@pytest.mark.parametrize("name", FILES)
def test_every_way_to_hand_over_a_file(name, tmp_path):
    data = FILES[name]()
    with Image.open(io.BytesIO(data)) as image:
        expected = reference_rgb(image)
    path = tmp_path / "picture"  # no extension: the content decides
    path.write_bytes(data)
    for make in SOURCES.values():
        assert_same_pixels(load_image(make(path, data)), expected)
    with open(path, "rb") as file:
        file.seek(3)
        assert_same_pixels(load_image(file), expected)
        assert not file.closed


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_are_counted_without_decoding(name, tmp_path):
    data = FILES[name]()
    path = tmp_path / "picture"
    path.write_bytes(data)
    pixels = load_image(data)
    for source in (path, data, io.BytesIO(data), Image.open(path)):
        assert count_pixels(source) == pixels.shape[0] * pixels.shape[1]
    assert count_pixels(pixels) == 0


def heic(image: Image.Image) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=-1)  # lossless
    return file.getvalue()


def test_heic_is_read_where_its_library_is_installed(tmp_path, monkeypatch):
    image = Image.new("RGB", (20, 12), (200, 30, 60))
    path = tmp_path / "photo.heic"
    path.write_bytes(heic(image))
    expected = pillow_heif.open_heif(path).to_pillow()
    assert_same_pixels(load_image(path), np.asarray(expected))
    assert np.abs(np.asarray(expected, int) - np.asarray(image, int)).max() <= 3  # YCbCr rounds
    assert count_pixels(path) == 240
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"bomb: .*240 pixels"):
        load_image(path)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)  # as if it were not installed
    with pytest.raises(ImageError, match=r"photo.heic' is HEIC.*pip install pillow-heif"):
        load_image(path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_damaged_heic_is_an_image_error(keep):
    data = heic(random_image("RGB", 64, 48))
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(data[: int(keep * len(data))])


def test_transparency_in_a_file_is_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, 0] = 10, 20, 30, 255
    pixels[0, 1] = 10, 20, 30, 0
    pixels[0, 2] = 0, 0, 0, 51
    data = encode(Image.fromarray(pixels), "PNG")
    assert load_image(data).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]


def test_photographs_equal_the_references_loader(tmp_path):
    for photo in load_sample_images().images:
        path = tmp_path / "photo.jpg"
        Image.fromarray(photo).save(path, quality=90)
        assert_same_pixels(load_image(path), np.array(reference_load_image(str(path))))


UPRIGHT = {  # EXIF orientation -> the upright picture, in NumPy's terms
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, format, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(random_image("RGB"), format, exif=exif)
    path = tmp_path / "turned"
    path.write_bytes(data)
    raw = encode(random_image("RGB"), format)
    expected = UPRIGHT[orientation](np.array(Image.open(io.BytesIO(raw))))
    for source in (path, data, io.BytesIO(data)):
        assert_same_pixels(load_image(source), np.ascontiguousarray(expected))
    assert_same_pixels(load_image(path), np.array(reference_load_image(str(path))))
    assert_same_pixels(load_image(Image.open(path), exif_transpose=True), np.ascontiguousarray(expected))
    as_is = load_image(Image.open(path))
    assert_same_pixels(as_is, reference_rgb(Image.open(path)))
    if format != "TIFF":  # which Pillow itself turns
        assert_same_pixels(as_is, np.array(Image.open(io.BytesIO(raw))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40])
def test_damaged_exif_says_nothing_about_the_pixels(exif):
    assert_same_pixels(load_image(encode(random_image("RGB"), "PNG", exif=exif)), reference_rgb(random_image("RGB")))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_same_pixels(load_image(encode(random_image("RGB"), "PNG", exif=exif)), reference_rgb(random_image("RGB")))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (9, 6), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    opened: Any = Image.open(io.BytesIO(data))
    with opened as animation:
        assert animation.n_frames == 3
        assert_same_pixels(load_image(data), np.array(frames[0]))
        animation.seek(1)
        assert_same_pixels(load_image(animation), np.array(frames[1]))
