"""Random images of every mode, files of every format, and the reference's conversion to RGB."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_transforms import convert_to_rgb


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def reference_rgb(image: Any, **options: Any) -> np.ndarray:
    return np.asarray(convert_to_rgb(image, return_numpy=True, **options))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def random_image(mode: str, width: int = 7, height: int = 5) -> Image.Image:
    if mode in ("I", "F"):  # beyond 0..255 on both sides, with fractions
        values = rng().uniform(-100, 400, (height, width))
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    size = len(Image.new(mode, (width, height)).tobytes())
    image = Image.frombytes(mode, (width, height), rng().bytes(size))
    if mode in ("P", "PA"):
        image.putpalette(rng(1).bytes(768))
    return image


def assert_same_pixels(pixels: np.ndarray, expected: np.ndarray) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected, strict=True)


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
JPEG = encode(random_image("RGB", 40, 30), "JPEG")
PNG = encode(random_image("RGB", 40, 30), "PNG")


def png_of_size(width: int, height: int) -> bytes:
    """A file whose header promises so many pixels, and which holds the first thousand bytes of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
