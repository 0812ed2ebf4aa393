"""The stream: a fixed set of programs, every image in its place, nothing lost to a bad one, bounded memory."""

import dataclasses
import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

import multipatch_jax as mp
from multipatch_jax.encode import stream
from tests import tolerances


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def random_images(count, seed=0, largest=1500):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = np.exp(rng.uniform(0, np.log(largest), 2)).astype(int)
        yield rng.integers(0, 256, (height, width, 3), np.uint8)


def one_by_one(model, images):
    return [np.asarray(mp.encode_image(model.params, image, config=model.config)) for image in images]


# ---------------------------------------------------------------------------------------------------------------------
# A fixed set of programs.


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


def test_images_of_every_bucket_and_beyond(tiny):
    images = [np.full((side, 30, 3), 90, np.uint8) for side in (900, 1800, 3600, 5000)]
    for tile_on in ("device", "host"):
        got = mp.encode_images(tiny.params, images, config=tiny.config, tile_on=tile_on)
        for tokens, expected in zip(got, one_by_one(tiny, images), strict=True):
            assert distance(tokens, expected) <= tolerances.SAME_PROGRAM


def test_more_tiles_than_fit_in_one_append(tiny):
    """A grid over 4 x 4 goes through the host, in pieces."""
    tiling = dataclasses.replace(tiny.config.tiling, longest_edge=400)
    config = dataclasses.replace(tiny.config, tiling=tiling)
    image = np.random.default_rng(0).integers(0, 256, (300, 290, 3), np.uint8)
    tiles = mp.tile_image_host(image, tiling)
    assert len(tiles) > 17
    expected = np.asarray(mp.encode_tiles(tiny.params, tiles, config=config)).reshape(-1, 48)
    for tile_on in ("device", "host"):
        (got,) = mp.encode_images(tiny.params, [image], config=config, tile_on=tile_on)
        assert distance(got, expected) <= tolerances.SAME_PROGRAM


def test_the_guard_names_what_was_compiled():
    def a_new_function(x):
        return x + 1

    with pytest.raises(mp.encode.RecompileError, match=r"XLA compiled 1: jit\(a_new_function\)\. Call warmup first"):
        with mp.encode.forbid_compilations():
            jax.jit(a_new_function)(np.zeros(3))
    with mp.encode.count_compilations() as names:
        jax.jit(a_new_function)(np.zeros(3))
        jax.jit(a_new_function)(np.zeros(4))
    assert len(names) <= 2


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


def test_raise_yields_what_came_before(tiny, photo, tmp_path):
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
    assert few <= stream.READ_AHEAD + 10  # the chunk in flight and the one after it hold a few images, too
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


def test_nothing_in_nothing_out(tiny):
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
        (7, {}, "images must be an iterable of images, got int"),
        ([], {"config": mp.presets.SMOLVLM_256M}, "not of this config"),
    ],
)
def test_bad_arguments_are_told_at_once(images, options, message, tiny):
    with pytest.raises(ValueError, match=message):
        mp.iter_encode_images(tiny.params, images, **{"config": tiny.config, **options})


# ---------------------------------------------------------------------------------------------------------------------
# The cache.


def page_with_margins():
    """A scanned paragraph in the middle of a white page, 2 x its size on every side."""
    text = np.repeat(data.page()[:180, :360, None], 3, axis=2)
    page = np.full((1600, 1600, 3), 255, np.uint8)
    page[700:880, 620:980] = text
    return page


def test_cached_tokens_are_bit_equal_and_blank_tiles_are_encoded_once(tiny, photo):
    images = [page_with_margins(), photo, page_with_margins(), photo[:100]]
    plain = mp.encode_images(tiny.params, images, config=tiny.config, tile_on="host")
    cache, stats = mp.TileCache(), mp.encode.StreamStats()
    cached = mp.encode_images(tiny.params, images, config=tiny.config, cache=cache, stats=stats)
    for a, b in zip(plain, cached, strict=True):
        np.testing.assert_array_equal(a, b)
    page_tiles = mp.tile_image_host(images[0], tiny.config.tiling)
    unique = len({tile.tobytes() for tile in page_tiles})
    assert unique <= 6 < len(page_tiles)  # of 17
    assert stats.encoded == unique + 13 + 5
    assert cache.hits == stats.tiles - stats.encoded
    assert cache.hit_rate == pytest.approx(cache.hits / stats.tiles)
    again = mp.encode_images(
        tiny.params, images, config=tiny.config, cache=cache, stats=(second := mp.encode.StreamStats())
    )
    assert second.encoded == 0
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_cache_is_bounded_and_forgets_the_least_recently_used(tiny, photo):
    cache = mp.TileCache(max_tiles=5)
    options = {"config": tiny.config, "cache": cache}
    plain = mp.encode_images(tiny.params, [photo, photo], config=tiny.config)
    for a, b in zip(plain, mp.encode_images(tiny.params, [photo, photo], **options), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(cache._tokens) == 5
    keys = list(cache._tokens)
    cache.get(keys[0])
    cache.put(b"new", np.zeros((4, 48), np.float32))
    assert keys[0] in cache._tokens
    assert keys[1] not in cache._tokens


@pytest.mark.parametrize("max_tiles", [0, 2.5, True])
def test_a_cache_without_room_is_refused(max_tiles):
    with pytest.raises(ValueError, match="max_tiles must be a positive number of tiles"):
        mp.TileCache(max_tiles)
