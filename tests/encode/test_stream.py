"""The stream: a fixed set of programs, results in order, good images kept when one is bad, bounded memory."""

import dataclasses
import io
import resource
import threading
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.encode import read_ahead
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.images import random_images


def one_by_one(model, images):
    return [np.asarray(mp.encode_image(model.params, image, config=model.config)) for image in images]


@pytest.mark.parametrize(("tile_on", "batch_size"), [("device", 1), ("host", 8)])
def test_200_sizes_compile_nothing_after_warmup(tile_on, batch_size, tiny):
    jax.clear_caches()
    options = {"config": tiny.config, "tile_on": tile_on, "batch_size": batch_size}
    with mp.encode.count_compilations() as programs:
        mp.warmup(tiny.params, **options)
    assert 0 < len(programs) <= 12
    stats, results = mp.encode.StreamStats(), []
    with mp.encode.forbid_compilations():
        for result in mp.iter_encode_images(tiny.params, random_images(200), stats=stats, **options):
            results.append(result)
    assert stats.images == len(results) == 200
    assert stats.encoded == stats.tiles
    assert stats.padding_waste < 0.1
    for got, image in zip(results[:40], random_images(40), strict=True):
        expected = mp.encode_image(tiny.params, image, config=tiny.config, batch_size=batch_size)
        assert distance(got, expected) <= tolerances.SAME_PROGRAM


@pytest.mark.gpu
def test_images_of_every_bucket_and_beyond(tiny):
    images = [np.full((side, 30, 3), 90, np.uint8) for side in (900, 1800, 3600, 5000)]
    for tile_on in ("device", "host"):
        got = mp.encode_images(tiny.params, images, config=tiny.config, tile_on=tile_on)
        for tokens, expected in zip(got, one_by_one(tiny, images), strict=True):
            assert distance(tokens, expected) <= tolerances.SAME_PROGRAM


def test_more_tiles_than_fit_in_one_append(tiny):
    """A grid larger than 4 x 4 is tiled on the host and appended in pieces."""
    tiling = dataclasses.replace(tiny.config.tiling, longest_edge=400)
    config = dataclasses.replace(tiny.config, tiling=tiling)
    image = np.random.default_rng(0).integers(0, 256, (300, 290, 3), np.uint8)
    tiles = mp.tile_image_host(image, tiling)
    assert len(tiles) > 17
    expected = np.asarray(mp.encode_tiles(tiny.params, tiles, config=config)).reshape(-1, 48)
    for tile_on in ("device", "host"):
        (got,) = mp.encode_images(tiny.params, [image], config=config, tile_on=tile_on)
        assert distance(got, expected) <= tolerances.SAME_PROGRAM


# ---------------------------------------------------------------------------------------------------------------------
# Order, errors, memory.


def sources(photo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    return [
        photo,
        np.zeros((3, 20, 30), np.uint8),
        jnp.asarray(photo[:50]),
        tmp_path / "missing.png",
        tmp_path / "broken.png",
        photo[:, :70],
    ]


def test_one_bad_image_does_not_lose_the_others(tiny, photo, tmp_path):
    results = mp.encode_images(tiny.params, sources(photo, tmp_path), config=tiny.config, on_error="skip")
    assert [type(result) for result in results] == [
        np.ndarray, mp.ImageError, np.ndarray, FileNotFoundError, mp.ImageError, np.ndarray,
    ]  # fmt: skip
    assert str(results[1]).startswith("Image 1: An image array must be")
    assert "missing.png" in str(results[3])
    assert "Image 4: " in str(results[4])
    assert "broken.png" in str(results[4])
    good = one_by_one(tiny, [photo, photo[:50], photo[:, :70]])
    for got, expected in zip((results[0], results[2], results[5]), good, strict=True):
        assert distance(got, expected) <= tolerances.SAME_PROGRAM


def test_on_error_raise_yields_the_images_before_the_bad_one(tiny, photo, tmp_path):
    results = mp.iter_encode_images(tiny.params, sources(photo, tmp_path), config=tiny.config)
    assert distance(next(results), one_by_one(tiny, [photo])[0]) <= tolerances.SAME_PROGRAM
    with pytest.raises(mp.ImageError, match="Image 1: "):
        next(results)


def test_an_error_of_the_users_own_generator_comes_through(tiny, photo):
    def images():
        yield photo
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        mp.encode_images(tiny.params, images(), config=tiny.config)


def test_reading_ahead_is_bounded_and_stops_with_the_reader(tiny):
    taken = []

    def images():
        for index, image in enumerate(random_images(1000, largest=100)):
            taken.append(index)
            yield image

    tokens = mp.iter_encode_images(tiny.params, images(), config=tiny.config)
    assert taken == []
    next(tokens)
    few = len(taken)
    assert isinstance(tokens, Generator)
    assert few <= read_ahead.READ_AHEAD + 10  # the chunk in flight and the one after it hold a few images too
    tokens.close()
    assert len(taken) == few
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("multipatch")]


def test_memory_is_flat(tiny):
    peaks = []
    for tile_on in ("host", "device"):
        images = (np.zeros((1000, 1000, 3), np.uint8) for _ in range(150))  # 0.45 GB if they were kept
        for index, _ in enumerate(mp.iter_encode_images(tiny.params, images, config=tiny.config, tile_on=tile_on)):
            if index in (50, 149):
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 64_000  # kB
    assert peaks[3] - peaks[2] < 64_000


def test_no_images_give_no_tokens(tiny):
    assert mp.encode_images(tiny.params, [], config=tiny.config) == []


def test_progress_counts_images(tiny, capsys):
    mp.encode_images(tiny.params, list(random_images(3, largest=50)), config=tiny.config, progress=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {"on_error": "ignore"}, 'on_error must be "raise" or "skip"'),
        ([], {"tile_on": "tpu"}, 'tile_on must be "device", "host" or None'),
        ([], {"tile_on": "device", "cache": mp.TileCache()}, "A cache looks at tiles on the host"),
        ([], {"batch_size": 0}, "batch_size must be a positive number"),
        ("photo.jpg", {}, r"images must be an iterable of images, got str; for one, pass \[image\]"),
        (np.zeros((8, 8, 3), np.uint8), {}, r"an iterable of images, got ndarray; for one, pass \[image\]"),
        (io.BytesIO(b"a file"), {}, "an iterable of images, got BytesIO; for one"),
        (bytearray(b"a file"), {}, "an iterable of images, got bytearray; for one"),
        (7, {}, "images must be an iterable of images, got int"),
        ([], {"config": mp.presets.SMOLVLM_256M}, "not of this config"),
    ],
)
def test_bad_arguments_are_told_at_once(images, options, message, tiny):
    with pytest.raises(ValueError, match=message):
        mp.iter_encode_images(tiny.params, images, **{"config": tiny.config, **options})
