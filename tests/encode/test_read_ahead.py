"""What a generator yields is its own: one buffer, file or object for all images, a slow source, one that is fed."""

import io
import queue
import resource
import threading
import time
from collections.abc import Generator

import numpy as np
import pytest
from PIL import Image

import multipatch_jax as mp
from multipatch_jax.encode import read_ahead
from tests.helpers.processes import python_output

COLORS = [(30 * i, 255 - 20 * i, 7 * i) for i in range(8)]


def frames():
    return [np.full((40, 60, 3), color, np.uint8) for color in COLORS]


def in_one_array(_):
    buffer = np.empty((40, 60, 3), np.uint8)
    for frame in frames():
        buffer[:] = frame
        yield buffer


def in_one_read_only_view(_):
    buffer = np.empty((40, 60, 3), np.uint8)
    view = buffer[:]
    view.flags.writeable = False
    for frame in frames():
        buffer[:] = frame
        yield view


def in_one_tensor(_):
    torch = pytest.importorskip("torch", reason="one of the sources is a tensor of torch")
    buffer = torch.empty((40, 60, 3), dtype=torch.uint8)
    for frame in frames():
        buffer.copy_(torch.from_numpy(frame))
        yield buffer


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def in_one_bytearray(_):
    buffer = bytearray()
    for frame in frames():
        buffer[:] = png(frame)
        yield buffer


def in_one_memoryview(_):
    buffer = bytearray(1000)
    for frame in frames():
        data = png(frame)
        buffer[: len(data)] = data
        yield memoryview(buffer)


def in_one_file_object(_):
    file = io.BytesIO()
    for frame in frames():
        file.seek(0)
        file.truncate()
        file.write(png(frame))
        yield file


def in_one_path(tmp_path):
    path = tmp_path / "frame.png"
    for frame in frames():
        path.write_bytes(png(frame))
        yield path
        path.unlink()


def in_one_pil_image(_):
    image = Image.new("RGB", (60, 40))
    for color in COLORS:
        image.paste(color, (0, 0, 60, 40))
        yield image


def in_one_animation(tmp_path):
    path = tmp_path / "frames.png"
    first, *others = [Image.fromarray(frame) for frame in frames()]
    first.save(path, save_all=True, append_images=others)
    with Image.open(path) as animation:
        for index in range(len(COLORS)):
            animation.seek(index)
            yield animation


def in_files_that_are_closed(tmp_path):
    for frame in frames():
        (tmp_path / "frame.png").write_bytes(png(frame))
        with Image.open(tmp_path / "frame.png") as image:
            yield image


GENERATORS = [
    in_one_array, in_one_read_only_view, in_one_tensor, in_one_bytearray, in_one_memoryview, in_one_file_object,
    in_one_path, in_one_pil_image, in_one_animation, in_files_that_are_closed,
]  # fmt: skip


@pytest.mark.parametrize("tile_on", ["device", "host"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_generator_may_refill_what_it_yields(generator, tile_on, tiny, tmp_path):
    expected = mp.encode_images(tiny.params, frames(), config=tiny.config, tile_on=tile_on)
    found = mp.encode_images(tiny.params, generator(tmp_path), config=tiny.config, tile_on=tile_on)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("generator", [in_one_array, in_one_path])
def test_frames_of_a_video_too(generator, tiny, tmp_path):
    found = mp.text.encode_frames(tiny.params, generator(tmp_path), config=tiny.config)
    np.testing.assert_array_equal(found, mp.text.encode_frames(tiny.params, frames(), config=tiny.config))


def test_errors_still_name_the_file(tiny, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    paths = (tmp_path / name for name in ("broken.png", "missing.png", "."))
    results = mp.encode_images(tiny.params, [*paths, io.StringIO("text")], config=tiny.config, on_error="skip")
    paths = (tmp_path / name for name in ("broken.png", "missing.png", "."))
    images = (image for image in [*paths, io.StringIO("text")])
    found = mp.encode_images(tiny.params, images, config=tiny.config, on_error="skip")
    assert [type(one) for one in found] == [type(one) for one in results]
    assert [str(one) for one in found] == [str(one) for one in results]
    assert "broken.png" in str(found[0])


def fed_by(waiting):
    while (image := waiting.get()) is not None:
        yield image


def test_a_consumer_may_feed_its_own_generator(tiny):
    """Each result is there before the next image is, with no end of the iterable in sight."""
    waiting, results = queue.Queue(), []
    expected = mp.encode_images(tiny.params, frames(), config=tiny.config)
    waiting.put(frames()[0])
    for tokens in mp.iter_encode_images(tiny.params, fed_by(waiting), config=tiny.config):
        results.append(tokens)
        waiting.put(frames()[len(results)] if len(results) < len(COLORS) else None)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_stream_can_be_left_while_its_source_waits(tiny):
    waiting = queue.Queue()
    waiting.put(frames()[0])
    stream = mp.iter_encode_images(tiny.params, fed_by(waiting), config=tiny.config)
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    waiting.put(None)  # the thread that waits for it ends
    for thread in [thread for thread in threading.enumerate() if thread.name == "multipatch-reader"]:
        thread.join(10)
        assert not thread.is_alive()


def test_an_error_of_the_source_comes_after_the_images_before_it(tiny):
    def images():
        yield from frames()[:3]
        raise RuntimeError("the disk is gone")

    results = mp.iter_encode_images(tiny.params, images(), config=tiny.config, on_error="skip")
    for _ in range(3):
        assert isinstance(next(results), np.ndarray)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(results)


def test_a_slow_source_pads_and_compiles_nothing_new(tiny):
    def images():
        for frame in frames()[:3]:
            yield frame
            time.sleep(3 * read_ahead.PATIENCE)

    mp.warmup(tiny.params, config=tiny.config)
    with mp.encode.forbid_compilations():
        found = mp.encode_images(tiny.params, images(), config=tiny.config)
    for got, want in zip(found, mp.encode_images(tiny.params, frames()[:3], config=tiny.config), strict=True):
        np.testing.assert_array_equal(got, want)


def test_large_images_are_decoded_one_at_a_time():
    """Eight of 36 megapixels: 0.2 GB for one at a time, 1.2 GB more for four."""
    code = """
import io, resource
import numpy as np
from PIL import Image
from multipatch_jax.config import TilingConfig
from multipatch_jax.encode.read_ahead import read_ahead
file = io.BytesIO()
Image.new("RGBA", (6000, 6000), (1, 2, 3, 255)).save(file, "PNG")
images = [file.getvalue()] * 8
def peak(images):
    for _ in read_ahead(images, TilingConfig(), on_device=False, form="gather"):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(peak(images[:1]), peak(images))
"""
    one, many = map(int, python_output("-c", code).split())
    assert many - one < 500  # MB


@pytest.mark.slow
def test_ten_thousand_images_of_one_buffer(tiny):
    """Each result equals that of the image alone; nothing compiles; memory does not grow."""

    def images():
        buffer = np.empty((30, 40, 3), np.uint8)
        for index in range(10_000):
            buffer[:] = index % 251, index // 251, 7
            yield buffer

    def expected(index):
        pixels = np.empty((30, 40, 3), np.uint8)
        pixels[:] = index % 251, index // 251, 7
        return mp.encode_image(tiny.params, pixels, config=tiny.config)

    mp.warmup(tiny.params, config=tiny.config)
    expected(0)
    memory, index = [], -1
    with mp.encode.forbid_compilations():
        for index, tokens in enumerate(mp.iter_encode_images(tiny.params, images(), config=tiny.config)):
            np.testing.assert_array_equal(tokens, expected(index))
            if index in (1000, 9999):
                memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert index == 9999
    assert memory[1] - memory[0] < 32_000  # kB
