"""Open an image file with Pillow, from a path, bytes or a file object; every failure is an `ImageError`.

Several threads may open and load images at once. For that reason Pillow's warnings, mostly about damaged metadata, are
not suppressed: `warnings.catch_warnings` saves and restores global state, and two threads that overlap could restore it
in the wrong order and lose the caller's filters for good. Where the caller's filters turn a warning of Pillow into an
error, an `ImageError` is raised.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

TRANSPOSE = {  # EXIF orientation -> what turns the image upright; orientation 1 is upright already
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # bytes 8 to 12, after "ftyp"


class ImageError(ValueError):
    """An image cannot be used: it is damaged, refused, or no image at all. The message says which, and what to do."""


@contextlib.contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Turn any exception that Pillow raises inside the block into an `ImageError` whose message starts with `name`."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} is refused as a possible decompression bomb: {error} "
            f"If you trust it, set PIL.Image.MAX_IMAGE_PIXELS higher."
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, KeyError and more
        raise ImageError(f"{name} cannot be decoded: {type(error).__name__}: {error}.") from error


def is_file(source: Any) -> bool:
    """Return whether a source is a file: a path, the bytes of a file, or a file object."""
    return isinstance(source, (bytes, bytearray, memoryview, str, os.PathLike)) or hasattr(source, "read")


@contextlib.contextmanager
def open_image(source: Any) -> Iterator[Image.Image]:
    """Open a file as a PIL image that is not decoded yet.

    Errors of the block are turned into `ImageError`s too.

    Args:
      source: a path, bytes, or a binary file object, which is left open.

    Raises:
      FileNotFoundError: the path does not exist.
      ImageError: it cannot be opened, or is refused: an image of more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels
        (Pillow warns above once), a PostScript file.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray, memoryview)):
            file, name = io.BytesIO(source), "Image from bytes"
        elif isinstance(source, (str, os.PathLike)):
            file, name = stack.enter_context(_open_path(source)), f"Image file {os.fspath(source)!r}"
        else:
            file, path = source, getattr(source, "name", None)
            name = f"Image file {path!r}" if isinstance(path, str) else "Image from file object"
        with pillow_errors(name), _open_file(file, name) as image:
            yield image


def _open_path(path: str | os.PathLike) -> Any:
    try:
        # Given a path, Pillow may map the file into memory; if another program truncates it, this process dies.
        return open(path, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "No such image file (URLs are not fetched)", error.filename) from None
    except (OSError, ValueError) as error:
        raise ImageError(f"Image file {os.fspath(path)!r} cannot be opened: {error}.") from error


def _open_file(file: Any, name: str) -> Image.Image:
    if not isinstance(file.read(0), bytes):
        raise ImageError(f"{name} must give bytes, got text: open it with mode 'rb'.")
    if not (hasattr(file, "seekable") and file.seekable()):
        file = io.BytesIO(file.read())
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(16)
        if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
            return _open_heic(file, name)
        what = f"is damaged, or no image that Pillow knows: it starts with {start!r}" if start else "is empty"
        raise ImageError(f"{name} {what}.") from None
    if image.format == "EPS":
        raise ImageError(f"{name} is PostScript, a program, which is not run: convert it to PNG first.")
    return image


def _open_heic(file: Any, name: str) -> Image.Image:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise ImageError(f"{name} is HEIC, which Pillow cannot read: pip install pillow-heif.") from None
    file.seek(0)
    image = HeifImageFile(file)
    check_pixels(*image.size)
    return image


def check_pixels(width: int, height: int) -> None:
    """Apply Pillow's own rule for files, which guards against decompression bombs, to another image.

    Raises:
      DecompressionBombError: the image has more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels. Above once, the call
        warns.
    """
    limit, pixels = Image.MAX_IMAGE_PIXELS, width * height
    if limit is None or pixels <= limit:
        return
    message = f"Image size ({pixels} pixels) exceeds limit of {limit if pixels <= 2 * limit else 2 * limit} pixels"
    if pixels > 2 * limit:
        raise Image.DecompressionBombError(f"{message}, could be decompression bomb DOS attack.")
    warnings.warn(f"{message}, could be decompression bomb DOS attack.", Image.DecompressionBombWarning, stacklevel=4)


def orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if the image has none or its EXIF data are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels may be good all the same
        return 1
