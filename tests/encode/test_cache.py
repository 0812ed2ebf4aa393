"""The cache of tiles: it changes no bit, encodes equal tiles once, and is bounded."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
from skimage import data

import multipatch_jax as mp


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
    assert unique <= 6 < len(page_tiles)  # there are 17
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


@pytest.mark.parametrize("change", ["params", "compute", "config"])
def test_a_cache_is_of_one_model(change, tiny, photo):
    """Fault 2: with other params it gave the tokens of the first."""
    cache = mp.TileCache()
    options = {"config": tiny.config, "compute": mp.Compute(encoder="flax"), "cache": cache}
    first = mp.encode_images(tiny.params, [photo], **options)
    params = tiny.params
    if change == "params":
        params = jax.tree.map(lambda x: 2 * x, params)
    elif change == "compute":
        options["compute"] = mp.Compute(dtype="bfloat16")
    else:
        vision = dataclasses.replace(tiny.config.vision, layer_norm_eps=0.1)
        options["config"] = dataclasses.replace(tiny.config, vision=vision)
    with pytest.raises(ValueError, match="A TileCache holds the tokens of one model"):
        mp.iter_encode_images(params, [photo], **options)
    np.testing.assert_array_equal(
        mp.encode_images(
            tiny.params, [photo], **options | {"config": tiny.config, "compute": mp.Compute(encoder="flax")}
        )[0],
        first[0],
    )


def test_a_cache_keeps_no_params_alive(tiny, photo):
    params = jax.tree.map(lambda x: x + 1, tiny.params)
    kept = weakref.ref(params["connector"]["modality_projection"]["proj"]["kernel"])
    cache = mp.TileCache()
    mp.encode_images(params, [photo], config=tiny.config, cache=cache)
    del params
    gc.collect()
    assert kept() is None
