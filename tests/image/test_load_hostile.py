"""load_image of hostile input: decompression bombs, damage of every kind, many threads, files left open."""

import contextlib
import random
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multipatch_jax.image import ImageError, load_image
from tests.helpers.image_files import FILES, JPEG, PNG, encode, png_of_size, random_image


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


# Pillow refuses 60000 x 60000 pixels, and only warns of 10000 x 10000: that is an error where warnings are errors.
BOMBS = [(60_000, "always"), (60_000, "ignore"), (60_000, "error"), (10_000, "error")]


@pytest.mark.parametrize(("side", "filter"), BOMBS)
def test_bombs_are_refused_before_they_are_decoded(side, filter, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(side, side))
    message = rf"'.*bomb.png' is refused .* decompression bomb: .*{side * side}.* set PIL.Image.MAX_IMAGE_PIXELS"
    with warnings.catch_warnings(record=True), little_memory(100 << 20):
        warnings.simplefilter(filter)
        with pytest.raises(ImageError, match=message):
            load_image(path)


@pytest.mark.parametrize("kind", ["path", "bytes", "PIL"])
def test_the_limit_is_pillows_for_every_source(kind, tmp_path, monkeypatch):
    """Pillow's rule, which the reference has too: above the limit a warning, above twice the limit an error."""
    image = random_image("RGB", 20, 20)
    (tmp_path / "a.png").write_bytes(encode(image, "PNG"))
    source = {"path": tmp_path / "a.png", "bytes": encode(image, "PNG"), "PIL": image}[kind]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(ImageError, match=r"bomb: .*400 pixels.* limit of 398 pixels"):
        load_image(source)
    for limit in (200, 399):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.warns(Image.DecompressionBombWarning, match="400 pixels"):
            assert load_image(source).shape == (20, 20, 3)
    for limit in (400, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings(action="error"):
            assert load_image(source).shape == (20, 20, 3)


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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # this limit bounds memory and time
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
    assert all(len(shape) == 3 and shape[2] == 3 and 0 < shape[0] * shape[1] <= 2_000_000 for shape in shapes)
    assert not [message for message in messages if "memory" in message.lower()]
    assert min(len(shapes), len(messages)) > 500  # some damage is refused, some only changes pixels


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
