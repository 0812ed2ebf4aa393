"""Encode many images of any sizes, in order: `read_ahead` prepares them, and their tiles are encoded as one stream."""

import collections
import contextlib
import functools
from collections.abc import Generator, Iterable, Iterator, Sized
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from multipatch_jax.arguments import require_positive_or_none, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.cache import TileCache
from multipatch_jax.encode.compiles import compile_all
from multipatch_jax.encode.execution import prepare_execution
from multipatch_jax.encode.read_ahead import read_ahead
from multipatch_jax.encode.tile_queue import StreamStats, TileQueue, lower_stream
from multipatch_jax.image import ImageError, PreparedImage, TilePlan, is_one_image
from multipatch_jax.nn import Compute
from multipatch_jax.params import Params
from multipatch_jax.presets import SMOLVLM_256M

MAX_BATCH_SIZE = 1024  # tiles


class _Result:
    """One image's place in the output: its plan and the tokens of its tiles, filled in as they arrive, or its error."""

    def __init__(self, plan: TilePlan | None = None, error: BaseException | None = None):
        self.error = error
        self.plan = plan
        self.missing = 0 if plan is None else plan.num_tiles
        self.tokens: list[Any] = [None] * self.missing

    def fill(self, index: int, tokens: np.ndarray) -> None:
        self.tokens[index] = tokens
        self.missing -= 1


def _named(error: BaseException, index: int) -> BaseException:
    """Return a documented error (ImageError, ValueError, FileNotFoundError) with the image's index before its message.

    Any other error is returned as it is.
    """
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
    """Queue the tiles that are neither in the cache nor already in the queue, and fill the others into `result`.

    Args:
      waiting: for the key of each tile in the queue, the results and the tile indices in them that receive its tokens.
    """

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
    prepared: Generator[PreparedImage | BaseException | None, None, None],
    on_error: str,
    cache: TileCache | None,
    stats: StreamStats,
    bar: tqdm,
    with_plans: bool,
) -> Iterator[Any]:
    """Yield the tokens or the error of each image in order, while the queue encodes the tiles of later images."""
    results: collections.deque[_Result] = collections.deque()
    waiting: dict[bytes, list[tuple[_Result, int]]] = {}

    def finished() -> Iterator[Any]:
        while results and not results[0].missing:
            result = results.popleft()
            bar.update()
            if result.error is not None and on_error == "raise":
                raise result.error
            if result.error is not None:
                yield result.error
            else:
                tokens = np.concatenate(result.tokens)
                yield (tokens, result.plan) if with_plans else tokens

    with bar, contextlib.closing(prepared):  # closing `prepared` ends its threads with the stream
        count = 0
        for item in prepared:
            if item is None:  # the next image is not there yet, so finish those that are
                queue.flush()
                yield from finished()
                continue
            stats.images += 1
            count += 1
            if isinstance(item, BaseException):
                results.append(_Result(error=_named(item, count - 1)))
                if on_error == "raise":
                    queue.flush()  # so that the images before this one are yielded first
            else:
                result = _Result(item.plan)
                results.append(result)
                stats.tiles += item.plan.num_tiles
                if cache is None or item.tiles is None:
                    queue.append(item, [functools.partial(result.fill, i) for i in range(item.plan.num_tiles)])
                else:
                    _append_cached(queue, cache, waiting, item.tiles, result)
            yield from finished()
        queue.flush()
        yield from finished()


def iter_encode_images(
    params: Params,
    images: Iterable[Any],
    *,
    config: ModelConfig = SMOLVLM_256M,
    compute: Compute = Compute(),
    batch_size: int | None = None,
    on_error: str = "raise",
    tile_on: str | None = None,
    cache: TileCache | None = None,
    stats: StreamStats | None = None,
    with_plans: bool = False,
    progress: bool = False,
) -> Iterator[Any]:
    """Encode many images of any sizes; yield the visual tokens of each, in order and as soon as they are computed.

    Args:
      params: with "vision_model" and "connector". If they are laid out on a mesh, its devices share the tiles.
      images: an iterable of anything that `load_image` takes. Only a few of its images are held at a time. A thread
        iterates over it, and copies or reads each image before it asks for the next, so one buffer may be refilled.
        Files of a list, or given as paths or bytes, are decoded in parallel; PIL images of a generator one by one.
      config: the model's.
      compute: how to compute.
      batch_size: most tiles in flight on a device; None chooses by backend (`encode.tiles_in_flight`).
      on_error: what happens at an image that cannot be read. "raise" first yields the images before it, then raises.
        "skip" yields the error in the image's place and continues.
      tile_on: where tiles are made; the bytes are the same.

        * "device": by a jitted program. This is the faster way, on a CPU too.
        * "host": by `tile_image_host`, in the threads that decode.
        * None: on the device, or on the host with a `cache`.

        Images that fit no size bucket (`image.bucket_side`) are always tiled on the host.
      cache: holds the tokens of tiles, so that equal tiles are encoded once. It compares tiles on the host, and serves
        one set of params, one config and one `compute`.
      stats: counters that are updated while the stream runs.
      with_plans: whether to yield (tokens, plan) of each image. The plan has the grid, which a prompt needs.
      progress: whether to show a progress bar of images.

    Yields:
      A NumPy array (N * T, D) for each image: tiles row-major, the global tile last. With on_error="skip", the error of
      an image that could not be read.

    Raises:
      ImageError, FileNotFoundError: as `load_image`, with the image's index; raised when the image is reached.
      ValueError: an argument does not fit; raised by the call itself, before the first image.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}.')
    if is_one_image(images) or not isinstance(images, Iterable):
        raise ValueError(f"images must be an iterable of images, got {type(images).__name__}; for one, pass [image].")
    if cache is not None and tile_on == "device":
        raise ValueError('A cache looks at tiles on the host: tile_on must then be "host" or None, got "device".')
    _check_tile_on(tile_on)
    if cache is not None:
        require_type("cache", cache, TileCache)
    if stats is not None:
        require_type("stats", stats, StreamStats)
    _check_batch_size(batch_size)
    own, execution = prepare_execution(params, config, compute, batch_size)
    if cache is not None:
        encoder = {name: params[name] for name in own}
        cache.claim(encoder, (config.vision, config.connector, execution.compute))
    stats = StreamStats() if stats is None else stats
    total = len(images) if isinstance(images, Sized) else None
    bar = tqdm(total=total, desc="encoding", unit=" images", disable=not progress)
    on_device = tile_on != "host" and cache is None
    prepared = read_ahead(images, config.tiling, on_device=on_device, form=execution.resize_form)
    return _stream(TileQueue(own, execution, stats), prepared, on_error, cache, stats, bar, with_plans)


def _check_tile_on(tile_on: str | None) -> None:
    if tile_on not in (None, "device", "host"):
        raise ValueError(f'tile_on must be "device", "host" or None, got {tile_on!r}.')


def _check_batch_size(batch_size: int | None) -> None:
    # The queue's buffer holds four batches: above this limit, more than 3 GB of tiles of 512 pixels a side.
    if (require_positive_or_none("batch_size", batch_size, "tiles") or 0) > MAX_BATCH_SIZE:
        raise ValueError(f"batch_size must be at most {MAX_BATCH_SIZE} tiles in a stream, got {batch_size}.")


def encode_images(params: Params, images: Iterable[Any], **options: Any) -> list[Any]:
    """Return the results of `iter_encode_images` as a list; `options` are its keyword arguments."""
    return list(iter_encode_images(params, images, **options))


def warmup(
    params: Params,
    *,
    config: ModelConfig = SMOLVLM_256M,
    compute: Compute = Compute(),
    batch_size: int | None = None,
    tile_on: str | None = None,
    progress: bool = False,
) -> None:
    """Compile every program that `encode_images` runs with the same arguments, so that it compiles nothing later.

    No program is executed. The call takes the time of the compiler, and little of that where JAX's persistent
    compilation cache has the programs. `encode_image` is not covered: it has a program for each size bucket and number
    of tiles, which is compiled at first use.

    Args:
      params, config, compute, batch_size, tile_on: as in `iter_encode_images`. For a stream with a cache, which is
        tiled on the host, tile_on="host" compiles fewer programs.
      progress: whether to show a bar that counts programs.
    """
    _check_tile_on(tile_on)
    _check_batch_size(batch_size)
    own, execution = prepare_execution(params, config, compute, batch_size)
    programs = (program for _, program in lower_stream(own, execution, on_device=tile_on != "host"))
    compile_all(programs, progress=progress)
