"""Many images of any sizes -> tokens, in order: decoded ahead in threads, encoded as one stream of tiles."""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator, Sized
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.cache import TileCache
from multipatch_jax.encode.execution import model_params, resolve_config, tiles_in_flight
from multipatch_jax.encode.tile_queue import StreamStats, TileQueue, compile_programs
from multipatch_jax.image import (
    ImageError,
    TilePlan,
    bucket_of,
    fits_bucket,
    load_image,
    pad_to_bucket,
    plan_tiles,
    tile_image_host,
    tiling_steps,
)
from multipatch_jax.params import Params
from multipatch_jax.presets import SMOLVLM_256M

READ_AHEAD = 4  # images decoded, or being decoded, before their turn


class _Result:
    """One image's place in the output: its tokens as they come in, or its error."""

    def __init__(self, num_tiles: int = 0, error: Exception | None = None):
        self.error = error
        self.missing = num_tiles
        self.tokens: list[Any] = [None] * num_tiles

    def fill(self, index: int, tokens: np.ndarray) -> None:
        self.tokens[index] = tokens
        self.missing -= 1


def _prepare(image: Any, config: ModelConfig, on_device: bool) -> tuple[TilePlan, Any]:
    """In a thread: the plan, and the tiles (host) or the padded pixels and filters that make them (device)."""
    pixels = load_image(image)
    plan = plan_tiles(pixels.shape[0], pixels.shape[1], config.tiling)
    if on_device and fits_bucket(plan, config.tiling):
        bucket = bucket_of(plan.height, plan.width)
        return plan, (pad_to_bucket(pixels), tiling_steps(plan, config.tiling, bucket))
    return plan, tile_image_host(pixels, config.tiling)


def _read_ahead(images: Iterable[Any], config: ModelConfig, on_device: bool) -> Generator[Any, None, None]:
    """What `_prepare` makes of each image, or the error that it raised, in order; READ_AHEAD at a time."""
    source = iter(images)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(READ_AHEAD, "multipatch") as pool:
        try:
            while True:
                for image in itertools.islice(source, READ_AHEAD - len(waiting)):
                    waiting.append(pool.submit(_prepare, image, config, on_device))
                if not waiting:
                    return
                future = waiting.popleft()
                yield future.exception() or future.result()
        finally:  # also when the caller stops early
            for future in waiting:
                future.cancel()


def _named(error: Exception, index: int) -> Exception:
    """The error with the image's index before it, of the same kind for the kinds that we document."""
    kind = type(error) if type(error) in (ImageError, ValueError) else FileNotFoundError
    if not isinstance(error, (ValueError, FileNotFoundError)):
        return error
    named = kind(f"Image {index}: {error}")
    named.__cause__ = error
    return named


def _append_cached(
    queue: TileQueue,
    cache: TileCache,
    waiting: dict[bytes, list[tuple[_Result, int]]],
    tiles: UInt8[np.ndarray, "N M M 3"],
    result: _Result,
) -> None:
    """Queues only the tiles that are neither remembered nor already in the queue."""

    def deliver(key, tokens):
        cache.put(key, tokens)
        for waiting_result, index in waiting.pop(key):
            waiting_result.fill(index, tokens)

    new = {}
    for index, tile in enumerate(tiles):
        key = cache.key(tile)
        tokens = cache.get(key)
        if tokens is not None:
            result.fill(index, tokens)
        elif key in waiting:
            waiting[key].append((result, index))
        else:
            waiting[key], new[key] = [(result, index)], index
    cache.hits += len(tiles) - len(new)
    cache.misses += len(new)
    queue.append_tiles(tiles[list(new.values())], [functools.partial(deliver, key) for key in new])


def _stream(
    queue: TileQueue,
    prepared: Generator[Any, None, None],
    on_error: str,
    cache: TileCache | None,
    stats: StreamStats,
    bar: tqdm,
) -> Iterator[Any]:
    results: collections.deque[_Result] = collections.deque()
    waiting: dict[bytes, list[tuple[_Result, int]]] = {}

    def finished() -> Iterator[Any]:
        while results and not results[0].missing:
            result = results.popleft()
            bar.update()
            if result.error is not None and on_error == "raise":
                raise result.error
            yield result.error or np.concatenate(result.tokens)

    with bar, contextlib.closing(prepared):  # no thread outlives the stream
        for index, item in enumerate(prepared):
            stats.images += 1
            if isinstance(item, Exception):
                results.append(_Result(error=_named(item, index)))
                if on_error == "raise":
                    queue.flush()  # what came before is not lost
            else:
                plan, source = item
                results.append(_Result(plan.num_tiles))
                stats.tiles += plan.num_tiles
                deliver = [functools.partial(results[-1].fill, i) for i in range(plan.num_tiles)]
                if isinstance(source, tuple):
                    padded, steps = source
                    queue.append_image(padded, steps, deliver)
                elif cache is None:
                    queue.append_tiles(source, deliver)
                else:
                    _append_cached(queue, cache, waiting, source, results[-1])
            yield from finished()
        queue.flush()
        yield from finished()


def _settings(
    params: Params, config: ModelConfig, batch_size: int | None, tile_on: str | None
) -> tuple[Params, ModelConfig, int, bool]:
    if tile_on not in (None, "device", "host"):
        raise ValueError(f'tile_on must be "device", "host" or None, got {tile_on!r}.')
    config = resolve_config(config, params)
    return model_params(params), config, tiles_in_flight(batch_size), tile_on != "host"


def iter_encode_images(
    params: Params,
    images: Iterable[Any],
    *,
    config: ModelConfig = SMOLVLM_256M,
    batch_size: int | None = None,
    on_error: str = "raise",
    tile_on: str | None = None,
    cache: TileCache | None = None,
    stats: StreamStats | None = None,
    progress: bool = False,
) -> Iterator[Float[np.ndarray, "T D"] | Exception]:
    """Visual tokens of many images of any sizes: an array (N * T, D) each, in order and as soon as they are there.

    Args:
      params: with "vision_model" and "connector".
      images: whatever `load_image` takes, from any iterable, of which only a few are held at a time.
      batch_size: tiles in flight; None is 1 on a CPU, 8 on a TPU and 17 on a GPU.
      on_error: what becomes of an image that cannot be read: "raise" yields what came before it and raises; "skip"
        yields the error in its place and goes on.
      tile_on: "device" (resampled by a jitted program, on a CPU too the faster way) or "host" (by Pillow, in the
        threads that decode): the same bytes. None is the device, and the host with a cache. Images over the largest
        bucket always go through the host.
      cache: remembers tiles, so that equal ones are encoded once; looks at them on the host.
      stats: filled in while the stream runs.
      progress: shows a bar of images.

    Raises:
      ImageError, FileNotFoundError: as `load_image`, with the image's index. ValueError: bad arguments, at once.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}.')
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise ValueError(f"images must be an iterable of images, got {type(images).__name__}; for one, pass [image].")
    if cache is not None and tile_on == "device":
        raise ValueError('A cache looks at tiles on the host: tile_on must then be "host" or None, got "device".')
    params, config, batch_size, on_device = _settings(params, config, batch_size, tile_on)
    on_device = on_device and cache is None
    stats = StreamStats() if stats is None else stats
    total = len(images) if isinstance(images, Sized) else None
    bar = tqdm(total=total, desc="encoding", unit=" images", disable=not progress)
    queue = TileQueue(params, config, batch_size, stats)
    return _stream(queue, _read_ahead(images, config, on_device), on_error, cache, stats, bar)


def encode_images(params: Params, images: Iterable[Any], **options: Any) -> list[Any]:
    """`iter_encode_images`, with the same options, as a list."""
    return list(iter_encode_images(params, images, **options))


def warmup(
    params: Params,
    *,
    config: ModelConfig = SMOLVLM_256M,
    batch_size: int | None = None,
    tile_on: str | None = None,
) -> None:
    """Compiles every program that `encode_images` runs with the same arguments; after it, nothing compiles.

    Nothing is executed, so it takes the compiler's time alone, and hardly that with JAX's persistent compilation
    cache. (`encode_image` has a program of its own for each size bucket and number of tiles, compiled at first use.)
    """
    compile_programs(*_settings(params, config, batch_size, tile_on))
