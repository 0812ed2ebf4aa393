"""load_image refuses what is not an image, in one sentence that names the source."""

import io
import struct
import zlib

import numpy as np
import pytest

from multipatch_jax.image import ImageError, load_image
from tests.helpers.image_files import JPEG, PNG, Stream, encode, random_image


@pytest.mark.parametrize("source", [None, 3, [[1, 2], [3, 4]], [np.zeros((5, 7, 3), np.uint8)], {"image": 1}])
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
        pytest.raises(ImageError, match="must give bytes, got text"),
    ):
        load_image(file)
    with pytest.raises(ImageError, match="open it with mode 'rb'"):
        load_image(io.StringIO("text"))


class Failing(io.BytesIO):
    """A file that breaks after its first kilobyte."""

    def __init__(self, data, error):
        super().__init__(data)
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
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
    # Pillow itself reports some of these errors as "truncated".
    with pytest.raises(ImageError, match=r"Image from file object cannot be decoded: .*(the cause|truncated)"):
        load_image(Failing(data, error("the cause")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(error):
    with pytest.raises(error):
        load_image(Failing(encode(random_image("RGB", 300, 300), "PNG"), error()))
