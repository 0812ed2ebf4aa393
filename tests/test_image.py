"""multipatch_jax.image against the reference's own conversion (transformers 5.23, PIL backend), and broken input."""

import contextlib
import io
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.image_transforms import convert_to_rgb, to_pil_image
from transformers.image_utils import load_image as reference_load_image

from multipatch_jax.image import ImageError, load_image
from multipatch_jax.image import load as image_module

MODES = """1 L P RGB RGBA CMYK YCbCr LAB HSV I F LA PA RGBX RGBa I;16 I;16L I;16B I;16N""".split()
FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


def rng(seed=0):
    return np.random.default_rng(seed)


def reference(image):
    return convert_to_rgb(image, return_numpy=True)


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def random_image(mode, width=7, height=5):
    if mode in ("I", "F"):  # beyond 0..255 on both sides, with fractions
        values = rng().uniform(-100, 400, (height, width))
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    size = len(Image.new(mode, (width, height)).tobytes())
    image = Image.frombytes(mode, (width, height), rng().bytes(size))
    if mode in ("P", "PA"):
        image.putpalette(rng(1).bytes(768))
    return image


def assert_same(pixels, expected):
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected, strict=True)


# ---------------------------------------------------------------------------------------------------------------------
# PIL images


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (700, 600), (300_000, 2)])
def test_every_mode_equals_the_reference(mode, size):
    image = random_image(mode, *size)  # the last two sizes take more than one strip
    assert_same(load_image(image), reference(image))


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("L", 3), ("RGB", (3, 4, 5)), ("1", 1), ("I;16", 3), ("P", 3), ("P", bytes(range(256))), ("P", bytes(7))],
)
def test_transparency_info_equals_the_reference(mode, transparency):
    image = random_image(mode, 30, 20)
    if mode != "1":
        image.paste(tuple(transparency) if mode == "RGB" else 3, (0, 0, 15, 10))
    image.info["transparency"] = transparency
    expected = reference(image.copy())
    assert (expected >= 250).all(-1).sum() >= 150  # the transparent part is white, or nearly
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load_image(image), expected)


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
        reference(image)
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


# ---------------------------------------------------------------------------------------------------------------------
# Files, bytes, file objects


class Stream(io.BytesIO):
    """A file object that cannot seek, like a socket's."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")


FILES = {
    "png": lambda: encode(random_image("RGBA"), "PNG"),
    "png-la": lambda: encode(random_image("LA"), "PNG"),
    "png-p": lambda: encode(random_image("P"), "PNG", transparency=bytes(range(256))),
    "png-p1": lambda: encode(random_image("P"), "PNG", transparency=int(np.asarray(random_image("P"))[0, 0])),
    "png-rgb": lambda: encode(random_image("RGB"), "PNG", transparency=random_image("RGB").getpixel((3, 2))),
    "png-l": lambda: encode(random_image("L"), "PNG", transparency=random_image("L").getpixel((3, 2))),
    "png-16": lambda: encode(random_image("I;16"), "PNG"),
    "jpeg": lambda: encode(random_image("RGB"), "JPEG"),
    "jpeg-progressive": lambda: encode(random_image("RGB"), "JPEG", progressive=True),
    "jpeg-cmyk": lambda: encode(random_image("CMYK"), "JPEG"),
    "gif": lambda: encode(random_image("P"), "GIF", transparency=int(np.asarray(random_image("P"))[0, 0])),
    "bmp": lambda: encode(random_image("RGB"), "BMP"),
    "bmp-1": lambda: encode(random_image("1"), "BMP"),
    "tiff": lambda: encode(random_image("RGBA"), "TIFF"),
    "tiff-lzw": lambda: encode(random_image("RGB"), "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: encode(random_image("RGB"), "TIFF", compression="jpeg"),
    "tiff-f": lambda: encode(random_image("F"), "TIFF"),
    "webp": lambda: encode(random_image("RGBA"), "WEBP", lossless=True),
    "webp-lossy": lambda: encode(random_image("RGB"), "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_way_to_hand_over_a_file(name, tmp_path):
    data = FILES[name]()
    with Image.open(io.BytesIO(data)) as image:
        expected = reference(image)
    path = tmp_path / "picture"  # no extension: the content decides
    path.write_bytes(data)
    for source in (str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), Stream(data)):
        assert_same(load_image(source), expected)
    with open(path, "rb") as file:
        file.seek(3)
        assert_same(load_image(file), expected)
        assert not file.closed


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
        assert_same(load_image(path), np.array(reference_load_image(str(path))))


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
        assert_same(load_image(source), np.ascontiguousarray(expected))
    assert_same(load_image(path), np.array(reference_load_image(str(path))))
    assert_same(load_image(Image.open(path), exif_transpose=True), np.ascontiguousarray(expected))
    as_is = load_image(Image.open(path))
    assert_same(as_is, reference(Image.open(path)))
    if format != "TIFF":  # which Pillow itself turns
        assert_same(as_is, np.array(Image.open(io.BytesIO(raw))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40])
def test_damaged_exif_says_nothing_about_the_pixels(exif):
    assert_same(load_image(encode(random_image("RGB"), "PNG", exif=exif)), reference(random_image("RGB")))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_same(load_image(encode(random_image("RGB"), "PNG", exif=exif)), reference(random_image("RGB")))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (9, 6), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 3
        assert_same(load_image(data), np.array(frames[0]))
        animation.seek(1)
        assert_same(load_image(animation), np.array(frames[1]))


# ---------------------------------------------------------------------------------------------------------------------
# Arrays

SIDES = st.integers(1, 24)


@settings(deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from([1, 3, 4]))
def test_uint8_arrays_equal_the_reference(data, height, width, channels):
    array = data.draw(hnp.arrays(np.uint8, (height, width, channels)))
    expected = convert_to_rgb(array, return_numpy=True, input_data_format="channels_last")
    for source in (array, jnp.asarray(array), np.asfortranarray(array)):
        assert_same(load_image(source), expected)
    flipped = np.ascontiguousarray(expected[::-1, ::-1])
    assert_same(load_image(array[::-1, ::-1]), flipped)


def test_rgba_arrays_equal_pillow_for_every_colour_and_alpha():
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    array = np.stack([value, value, value, alpha], -1)
    assert_same(load_image(array), reference(Image.fromarray(array)))
    assert_same(load_image(array), convert_to_rgb(array, return_numpy=True))


@settings(deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from([1, 3, 4]), st.sampled_from(FLOATS))
def test_float_arrays_equal_the_reference(data, height, width, channels, dtype):
    source = np.float64 if dtype == ml_dtypes.bfloat16 else dtype
    elements = st.floats(0, 1, width=np.dtype(source).itemsize * 8)
    array = data.draw(hnp.arrays(source, (height, width, channels), elements=elements)).astype(dtype)
    same = array.astype(np.float32) if dtype == ml_dtypes.bfloat16 else array  # the reference takes no bfloat16
    rgb = convert_to_rgb(same, return_numpy=True, input_data_format="channels_last")
    expected = np.array(to_pil_image(rgb, do_rescale=True, input_data_format="channels_last"))
    assert_same(load_image(array), expected)
    if dtype != np.float64:
        assert_same(load_image(jnp.asarray(array)), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_truncated(dtype):
    array = np.array([0, 1, 0.5, 0.998, 0.25, 0.001], dtype).reshape(2, 1, 3)
    assert load_image(array).tolist() == [[[0, 255, 127]], [[254, 63, 0]]]


def test_the_product_is_rounded_to_float32_before_truncation_as_in_the_reference():
    array = np.full((1, 1, 3), np.nextafter(1, 0))
    expected = np.array(to_pil_image(array, do_rescale=True, input_data_format="channels_last"))
    assert expected.tolist() == [[[255, 255, 255]]]
    assert_same(load_image(array), expected)


def test_zeros_and_ones_are_black_and_white():
    array = np.zeros((2, 1, 3), np.float32)  # the reference takes floats that are whole numbers for 0..255
    array[1] = 1
    assert load_image(array).tolist() == [[[0, 0, 0]], [[255, 255, 255]]]


def test_a_contiguous_rgb_array_is_not_copied():
    array = rng().integers(0, 256, (5, 7, 3), np.uint8)
    assert np.shares_memory(load_image(array), array)


def test_channels_are_last_however_the_shape_looks():
    array = rng().integers(0, 256, (3, 5, 3), np.uint8)  # the reference takes this one for channels-first
    assert_same(load_image(array), array)
    array = rng().integers(0, 256, (1, 4, 1), np.uint8)
    assert_same(load_image(array), np.repeat(array, 3, -1))


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
        (np.zeros((5, 7, 3), bool), r"got bool"),
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
    with pytest.raises(jax.errors.TracerArrayConversionError):  # JAX says it best
        jax.jit(load_image)(jnp.zeros((5, 7, 3), jnp.uint8))


def test_no_jax_is_imported():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); assert not {'jax', 'jaxlib', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, image_module.__file__], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("source", [None, 3, [[1, 2], [3, 4]], [np.zeros((5, 7, 3), U8)], {"image": 1}])
def test_other_types_are_type_errors(source):
    with pytest.raises(ImageError, match=f"a PIL image or an array, got {type(source).__name__}"):
        load_image(source)


def test_a_missing_file(tmp_path):
    path = tmp_path / "missing.png"
    for source in (path, str(path)):
        with pytest.raises(FileNotFoundError, match=r"No such image file.*missing\.png") as caught:
            load_image(source)
        assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match=r"URLs are not fetched.*https://example.org/cat.png"):
        load_image("https://example.org/cat.png")


def test_paths_that_cannot_be_opened(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for path, message in [
        (tmp_path, r"Image file '.*' cannot be opened: .*directory"),
        (file / "below.png", r"Image file '.*below.png' cannot be opened: .*Not a directory"),
        (tmp_path / ("x" * 5000), r"cannot be opened: .*name too long"),
        ("a\0b.png", r"Image file 'a\\x00b.png' cannot be opened: embedded null"),
    ]:
        with pytest.raises(ImageError, match=message):
            load_image(path)


JPEG = encode(random_image("RGB", 40, 30), "JPEG")
PNG = encode(random_image("RGB", 40, 30), "PNG")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>..", "is damaged, or no image that Pillow knows: it starts with b'<!DOCTYPE html>.'"),
        (b"\0" * 5000, "is damaged, or no image"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded: OSError: image file is truncated"),
        (JPEG[:-40], "cannot be decoded: OSError: image file is truncated"),
        (PNG[: len(PNG) // 2], "cannot be decoded: OSError: image file is truncated"),
        (PNG[:900] + b"\0\xff" * 9 + PNG[918:], "cannot be decoded: OSError: broken data stream"),
        (PNG[:20] + b"\xff" + PNG[21:], "is damaged, or no image"),  # the header's checksum
        (encode(random_image("RGB", 40, 30), "GIF")[:-60], "cannot be decoded: OSError: image file is truncated"),
        (encode(random_image("RGB", 40, 30), "BMP")[:-60], "cannot be decoded: OSError: image file is truncated"),
        (encode(random_image("RGB"), "TIFF")[:-10], "cannot be decoded: OSError: image file is truncated"),
        (
            encode(random_image("RGB"), "TIFF", compression="tiff_lzw")[:-60],
            "is damaged",
        ),  # the directory is at the end
        (encode(random_image("RGB"), "EPS"), "is PostScript, a program, which is not run"),
    ],
    ids=lambda x: "" if isinstance(x, bytes) else x[:30],
)
def test_files_that_are_refused(data, message, tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    sources = [("Image file '.*bad.jpg' ", path), ("Image from bytes ", data)]
    sources += [("Image from file object ", io.BytesIO(data)), ("Image from file object ", Stream(data))]
    for name, source in sources:
        with pytest.raises(ImageError, match=name) as caught:
            load_image(source)
        caught.match(message)


def test_text_is_refused(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    with (
        open(path, encoding="latin-1") as file,
        pytest.raises(ImageError, match="file object must give bytes, got text"),
    ):
        load_image(file)
    with pytest.raises(ImageError, match="open it with mode 'rb'"):
        load_image(io.StringIO("text"))


class Failing(io.BytesIO):
    """A file that breaks after its first kilobyte."""

    def __init__(self, data, error):
        super().__init__(data)
        self.error = error

    def read(self, size=-1):
        if size != 0 and self.tell() >= 1000:
            raise self.error
        return super().read(size)


ERRORS = [OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError, IndexError, KeyError, OverflowError]
ERRORS += [MemoryError, zlib.error, RecursionError, AssertionError, NotImplementedError, RuntimeError]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("error", ERRORS)
def test_whatever_decoding_raises_is_an_image_error(format, error):
    data = encode(random_image("RGB", 500, 500), format)
    assert len(data) > 100_000  # more than Pillow reads at a time
    # Pillow itself makes "truncated" of some.
    with pytest.raises(ImageError, match=r"Image from file object cannot be decoded: .*(the cause|truncated)"):
        load_image(Failing(data, error("the cause")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(error):
    with pytest.raises(error):
        load_image(Failing(encode(random_image("RGB", 300, 300), "PNG"), error()))


# ---------------------------------------------------------------------------------------------------------------------
# Bombs, fuzz, threads


@contextlib.contextmanager
def little_memory(extra):
    """At most `extra` bytes of address space beyond what the process has now, where the system keeps such a limit."""
    if sys.platform != "linux":
        yield
        return
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def png_of_size(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [60_000, 10_000], ids=["Pillow refuses", "Pillow only warns"])
@pytest.mark.parametrize("filter", ["always", "error", "ignore"])
def test_bombs_are_refused_before_they_are_decoded(side, filter, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(side, side))
    message = rf"'.*bomb.png' is refused .* decompression bomb: .*{side * side}.* set PIL.Image.MAX_IMAGE_PIXELS"
    with warnings.catch_warnings(record=True), little_memory(100 << 20):
        warnings.simplefilter(filter)
        with pytest.raises(ImageError, match=message):
            load_image(path)


def test_the_limit_is_pillows(monkeypatch):
    data = encode(random_image("RGB", 20, 20), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="400 pixels exceed the limit of 399"),
    ):
        load_image(data)
    for limit in (400, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_image(data).shape == (20, 20, 3)


def mutants(count, seed):
    """Small files of all kinds, damaged: bytes flipped, cut off, spliced, or set to extreme numbers."""
    chance = random.Random(seed)
    frames = [random_image("RGB"), random_image("RGB").rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [make() for make in FILES.values()]
    seeds += [
        encode(frames[0], format, save_all=True, append_images=frames[1:]) for format in ("GIF", "PNG", "WEBP", "TIFF")
    ]
    seeds += [encode(frames[0], format, exif=exif) for format in ("JPEG", "PNG", "WEBP", "TIFF")]
    seeds += [encode(frames[0], format) for format in ("ICO", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "QOI", "DDS")]
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        kind = chance.choice(["flip", "cut", "splice", "extreme"])
        at = chance.randrange(len(data))
        if kind == "flip":
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        elif kind == "cut":
            del data[at:]
        elif kind == "splice":
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            data[at : at + chance.randint(0, 64)] = other[start : start + chance.randint(1, 64)]
        else:
            number = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
            at %= 64
            data[at : at + 4] = number
        yield bytes(data)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("strict", [False, True], ids=["", "warnings are errors"])
def test_damaged_files_give_an_image_or_an_image_error(strict, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # so that memory and time are bounded by it
    shapes, messages = [], []
    with warnings.catch_warnings(), little_memory(128 << 20):
        if strict:
            warnings.simplefilter("error")
        for data in mutants(3000, seed=int(strict)):
            try:
                pixels = load_image(data)
            except ImageError as error:
                messages.append(str(error))
            else:
                assert pixels.dtype == np.uint8
                shapes.append(pixels.shape)
    assert all(len(shape) == 3 and shape[2] == 3 and 0 < shape[0] * shape[1] <= 1_000_000 for shape in shapes)
    assert not [message for message in messages if "memory" in message.lower()]
    assert min(len(shapes), len(messages)) > 500  # the damage is of both sorts


@pytest.mark.filterwarnings("ignore:::PIL")
def test_threads_agree_with_one_thread(tmp_path):
    def outcome(data):
        try:
            return load_image(data).tobytes()
        except ImageError as error:
            return str(error)

    sources = [*mutants(300, seed=7), JPEG, PNG, b"", png_of_size(10_000, 10_000)] * 2
    expected = [outcome(source) for source in sources]
    filters = list(warnings.filters)
    start = threading.Barrier(8)

    def work(_):
        start.wait()
        return [outcome(source) for source in sources]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert all(result == expected for result in results)
    assert warnings.filters == filters
    assert any(isinstance(result, bytes) for result in expected)
    assert any(isinstance(result, str) for result in expected)


def test_no_file_is_left_to_the_garbage_collector(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for make in FILES.values():
            good.write_bytes(make())
            bad.write_bytes(make()[:-20])
            load_image(good)
            with contextlib.suppress(ImageError):
                load_image(bad)
    assert not [warning for warning in caught if issubclass(warning.category, ResourceWarning)]
