"""Tiles of many images in one buffer on the device, encoded a chunk at a time by a fixed set of compiled programs.

One program per bucket of image sizes puts an image's tiles into the buffer, one puts tiles made on the host there, and
two encode: a chunk from its front, and a smaller one that ends the stream. Images need not align with chunks.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import Params, trace_encode
from multipatch_jax.preprocess import BUCKETS, MAX_GRID, ImageFilters, fits_device, image_filters, tile_padded
from multipatch_jax.resample import default_implementation
from multipatch_jax.tiling import plan_tiles

CAPACITY = MAX_GRID**2 + 1  # tiles appended at once: the most that an image in a bucket has
CHUNK = 4  # batches in a chunk

Deliver = Callable[[np.ndarray], None]


@dataclasses.dataclass
class StreamStats:
    """What a stream did, filled in while it runs."""

    images: int = 0
    tiles: int = 0
    encoded: int = 0
    padding: int = 0

    @property
    def padding_waste(self) -> float:
        """Share of the tiles that went through the tower only to fill a chunk."""
        return self.padding / max(self.encoded + self.padding, 1)


@functools.partial(jax.jit, static_argnames=("size", "tile_size"))
def _new_buffer(*, size, tile_size):
    return jnp.zeros((size, tile_size, tile_size, 3), jnp.uint8)


@functools.partial(jax.jit, static_argnames=("config", "resampling"), donate_argnames=("buffer",))
def _append_image(buffer, offset, padded, filters, *, config, resampling):
    tiles = tile_padded(padded, filters, num_tiles=CAPACITY, tiling=config.tiling, implementation=resampling)
    return jax.lax.dynamic_update_slice(buffer, tiles, (offset, 0, 0, 0))


@functools.partial(jax.jit, donate_argnames=("buffer",))
def _append_tiles(buffer, offset, tiles):
    return jax.lax.dynamic_update_slice(buffer, tiles, (offset, 0, 0, 0))


@functools.partial(jax.jit, static_argnames=("size", "config", "batch_size"), donate_argnames=("buffer",))
def _encode_chunk(params, buffer, *, size, config, batch_size):
    """Tokens of the first `size` tiles, and the buffer without them."""
    return trace_encode(params, buffer[:size], config, batch_size), jnp.roll(buffer, -size, axis=0)


class TileQueue:
    """The buffer and who waits for what is in it.

    Every tile comes with a function that takes its tokens, (T, D) NumPy, once they are on the host: in order, and while
    the device works on the next chunk.
    """

    def __init__(self, params: Params, config: ModelConfig, batch_size: int, stats: StreamStats):
        self._params, self._config, self._batch_size, self._stats = params, config, batch_size, stats
        self._chunk = CHUNK * batch_size
        # Before anything is appended there is less than a chunk in the buffer.
        self._buffer = _new_buffer(size=self._chunk - 1 + CAPACITY, tile_size=config.tiling.tile_size)
        self._waiting: collections.deque[Deliver] = collections.deque()  # one for each tile in the buffer
        self._running: collections.deque[tuple[jax.Array, list[Deliver]]] = collections.deque()

    def append_image(
        self, padded: UInt8[np.ndarray, "H W 3"], filters: ImageFilters, deliver: Sequence[Deliver]
    ) -> None:
        """The tiles of an image in its bucket, made on the device."""
        offset, resampling = np.int32(len(self._waiting)), default_implementation()
        self._buffer = _append_image(self._buffer, offset, padded, filters, config=self._config, resampling=resampling)
        self._appended(deliver)

    def append_tiles(self, tiles: UInt8[np.ndarray, "N M M 3"], deliver: Sequence[Deliver]) -> None:
        """Tiles made on the host, any number."""
        for start in range(0, len(tiles), CAPACITY):
            piece = tiles[start : start + CAPACITY]
            padded = np.zeros((CAPACITY, *tiles.shape[1:]), np.uint8)
            padded[: len(piece)] = piece
            self._buffer = _append_tiles(self._buffer, np.int32(len(self._waiting)), padded)
            self._appended(deliver[start : start + CAPACITY])

    def flush(self) -> None:
        """Encodes and delivers all that is left."""
        while self._waiting:
            self._encode(self._batch_size)
        while self._running:
            self._deliver()

    def _appended(self, deliver: Sequence[Deliver]) -> None:
        self._waiting += deliver
        while len(self._waiting) >= self._chunk:
            self._encode(self._chunk)

    def _encode(self, size: int) -> None:
        tokens, self._buffer = _encode_chunk(
            self._params, self._buffer, size=size, config=self._config, batch_size=self._batch_size
        )
        deliver = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
        self._running.append((tokens, deliver))
        self._stats.encoded += len(deliver)
        self._stats.padding += size - len(deliver)
        if len(self._running) > 1:  # the device has the new chunk to work on: time to cut the old one apart
            self._deliver()

    def _deliver(self) -> None:
        tokens, deliver = self._running.popleft()
        for take, row in zip(deliver, np.asarray(tokens), strict=False):
            take(row)


def compile_programs(params: Params, config: ModelConfig, batch_size: int, on_device: bool) -> None:
    """Compiles all that a `TileQueue` of these settings will run; executes nothing."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "multipatch") as pool:
        # XLA compiles, or reads from the persistent cache, while the next program is traced.
        compiling = [pool.submit(program.compile) for program in _lowered(params, config, batch_size, on_device)]
    for program in compiling:
        program.result()


def _lowered(params: Params, config: ModelConfig, batch_size: int, on_device: bool) -> Iterator[jax.stages.Lowered]:
    size, side = CHUNK * batch_size - 1 + CAPACITY, config.tiling.tile_size
    buffer = jax.ShapeDtypeStruct((size, side, side, 3), np.uint8)
    for chunk in {CHUNK * batch_size, batch_size}:
        yield _encode_chunk.lower(params, buffer, size=chunk, config=config, batch_size=batch_size)
    for bucket in BUCKETS if on_device else ():
        plan = plan_tiles(bucket, bucket, config.tiling)
        if fits_device(plan, config.tiling):
            padded = np.empty((bucket, bucket, 3), np.uint8)
            filters = image_filters(plan, config.tiling, (bucket, bucket))
            static = {"config": config, "resampling": default_implementation()}
            yield _append_image.lower(buffer, np.int32(0), padded, filters, **static)
    yield _new_buffer.lower(size=size, tile_size=side)
    yield _append_tiles.lower(buffer, np.int32(0), np.empty((CAPACITY, side, side, 3), np.uint8))
