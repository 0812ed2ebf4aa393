"""Tiles of many images in one buffer on the device, encoded a chunk at a time by a fixed set of compiled programs.

One program per bucket of image sizes puts an image's tiles into the buffer, one puts tiles made on the host there, and
two encode: a chunk from its front, and a smaller one that ends the stream. Images need not align with chunks.

On a mesh every device has a buffer of its own: an image goes to the device with the least to do, which makes its tiles
while others make those of other images, and all encode their chunks in one program.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import mesh_of, on_each_device
from multipatch_jax.encode.tiles import trace_encode
from multipatch_jax.image import (
    BUCKETS,
    MAX_GRID,
    TilingSteps,
    default_resize_implementation,
    fits_bucket,
    plan_tiles,
    tile_padded,
    tiling_steps,
)
from multipatch_jax.params import Params

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


def _sharding(mesh: Mesh) -> NamedSharding:
    """Of what every device has a share of."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


@functools.partial(jax.jit, static_argnames=("size", "tile_size", "mesh"))
def _new_buffer(*, size, tile_size, mesh):
    zeros = functools.partial(jnp.zeros, (size, tile_size, tile_size, 3), jnp.uint8)
    return on_each_device(zeros, mesh)()


def _append(make_tiles, source, buffer, device, offset, steps, mesh):
    """The buffer of one device with the tiles that `make_tiles` makes of its share of `source`; others have no work."""

    def on_device(source, buffer, device, offset, steps):
        def append(buffer):
            return jax.lax.dynamic_update_slice(buffer, make_tiles(source, steps), (offset, 0, 0, 0))

        if mesh is None:
            return append(buffer)
        return jax.lax.cond(jax.lax.axis_index(mesh.axis_names) == device, append, lambda buffer: buffer, buffer)

    shared_out = (True, True, False, False, False)
    return on_each_device(on_device, mesh, *shared_out)(source, buffer, device, offset, steps)


@functools.partial(jax.jit, static_argnames=("config", "resize_implementation", "mesh"), donate_argnames=("buffer",))
def _append_image(padded, buffer, device, offset, *, steps, config, resize_implementation, mesh):
    static = {"num_tiles": CAPACITY, "tiling": config.tiling, "implementation": resize_implementation}
    return _append(functools.partial(tile_padded, **static), padded, buffer, device, offset, steps, mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("buffer",))
def _append_tiles(tiles, buffer, device, offset, *, mesh):
    return _append(lambda tiles, _: tiles, tiles, buffer, device, offset, None, mesh)


@functools.partial(jax.jit, static_argnames=("size", "config", "batch_size", "mesh"), donate_argnames=("buffer",))
def _encode_chunk(params, buffer, *, size, config, batch_size, mesh):
    """Tokens of the first `size` tiles of every device, and the buffers without them."""

    def encode(params, buffer):
        return trace_encode(params, buffer[:size], config, batch_size), jnp.roll(buffer, -size, axis=0)

    return on_each_device(encode, mesh, False, True)(params, buffer)


class TileQueue:
    """The buffer and who waits for what is in it.

    Every tile comes with a function that takes its tokens, (T, D) NumPy, once they are on the host: in order, and while
    the device works on the next chunk.
    """

    def __init__(self, params: Params, config: ModelConfig, batch_size: int, stats: StreamStats):
        self._params, self._config, self._batch_size, self._stats = params, config, batch_size, stats
        self._chunk = CHUNK * batch_size
        self._mesh = mesh_of(params)
        self._placeholders: dict[
            tuple[int, ...], list[jax.Array]
        ] = {}  # what devices are sent that have nothing to append
        # Before anything is appended to a device's buffer there is less than a chunk in it.
        size, side = self._chunk - 1 + CAPACITY, config.tiling.tile_size
        self._buffer = _new_buffer(size=size, tile_size=side, mesh=self._mesh)
        # One function for each tile in the buffer of each device.
        self._waiting = [collections.deque[Deliver]() for _ in range(self._mesh.size if self._mesh else 1)]
        self._running: collections.deque[tuple[jax.Array, list[list[Deliver]]]] = collections.deque()

    def append_image(self, padded: UInt8[np.ndarray, "H W 3"], steps: TilingSteps, deliver: Sequence[Deliver]) -> None:
        """The tiles of an image in its bucket, made on the device."""
        static = {"config": self._config, "resize_implementation": default_resize_implementation()}
        self._append(functools.partial(_append_image, steps=steps, **static), padded, deliver)

    def append_tiles(self, tiles: UInt8[np.ndarray, "N M M 3"], deliver: Sequence[Deliver]) -> None:
        """Tiles made on the host, any number."""
        for start in range(0, len(tiles), CAPACITY):
            piece = tiles[start : start + CAPACITY]
            padded = np.zeros((CAPACITY, *tiles.shape[1:]), np.uint8)
            padded[: len(piece)] = piece
            self._append(_append_tiles, padded, deliver[start : start + CAPACITY])

    def flush(self) -> None:
        """Encodes and delivers all that is left."""
        while any(self._waiting):
            self._encode(self._batch_size)
        while self._running:
            self._deliver()

    def _append(self, program: Callable[..., jax.Array], source: np.ndarray, deliver: Sequence[Deliver]) -> None:
        device = min(range(len(self._waiting)), key=lambda i: len(self._waiting[i]))
        offset = np.int32(len(self._waiting[device]))
        self._buffer = program(self._send(source, device), self._buffer, np.int32(device), offset, mesh=self._mesh)
        self._waiting[device] += deliver
        while min(map(len, self._waiting)) >= self._chunk:
            self._encode(self._chunk)

    def _send(self, source: np.ndarray, device: int) -> Any:
        """An array of a share for every device: `source` for one, what lies there already for the others."""
        if self._mesh is None:
            return source
        devices = list(self._mesh.devices.flat)
        if source.shape not in self._placeholders:
            self._placeholders[source.shape] = [jax.device_put(np.zeros_like(source), one) for one in devices]
        shares = list(self._placeholders[source.shape])
        shares[device] = jax.device_put(source, devices[device])
        shape = (len(devices) * len(source), *source.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, _sharding(self._mesh), shares)

    def _encode(self, size: int) -> None:
        tokens, self._buffer = _encode_chunk(
            self._params, self._buffer, size=size, config=self._config, batch_size=self._batch_size, mesh=self._mesh
        )
        deliver = [[waiting.popleft() for _ in range(min(size, len(waiting)))] for waiting in self._waiting]
        self._running.append((tokens, deliver))
        encoded = sum(map(len, deliver))
        self._stats.encoded += encoded
        self._stats.padding += len(tokens) - encoded
        if len(self._running) > 1:  # the devices have the new chunk to work on: time to cut the old one apart
            self._deliver()

    def _deliver(self) -> None:
        tokens, deliver = self._running.popleft()
        shares = np.split(np.asarray(tokens), len(deliver))
        for share, functions in zip(shares, deliver, strict=True):
            for take, row in zip(functions, share, strict=False):
                take(row)


def compile_programs(params: Params, config: ModelConfig, batch_size: int, on_device: bool) -> None:
    """Compiles all that a `TileQueue` of these settings will run; executes nothing."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "multipatch") as pool:
        # XLA compiles, or reads from the persistent cache, while the next program is traced.
        compiling = [pool.submit(program.compile) for program in _lowered(params, config, batch_size, on_device)]
    for program in compiling:
        program.result()


def _lowered(params: Params, config: ModelConfig, batch_size: int, on_device: bool) -> Iterator[jax.stages.Lowered]:
    mesh = mesh_of(params)
    sharding, devices = (_sharding(mesh), mesh.size) if mesh else (None, 1)

    def shares(*shape):  # NumPy's where there is one device: what is sent there has no place yet
        shape = (devices * shape[0], *shape[1:])
        return jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding) if mesh else np.empty(shape, np.uint8)

    size, side = CHUNK * batch_size - 1 + CAPACITY, config.tiling.tile_size
    buffer = jax.ShapeDtypeStruct((devices * size, side, side, 3), np.uint8, sharding=sharding)
    to = (buffer, np.int32(0), np.int32(0))
    for chunk in {CHUNK * batch_size, batch_size}:
        yield _encode_chunk.lower(params, buffer, size=chunk, config=config, batch_size=batch_size, mesh=mesh)
    for bucket in BUCKETS if on_device else ():
        plan = plan_tiles(bucket, bucket, config.tiling)
        if fits_bucket(plan, config.tiling):
            steps = tiling_steps(plan, config.tiling, (bucket, bucket))
            static = {"config": config, "resize_implementation": default_resize_implementation(), "mesh": mesh}
            yield _append_image.lower(shares(bucket, bucket, 3), *to, steps=steps, **static)
    yield _new_buffer.lower(size=size, tile_size=side, mesh=mesh)
    yield _append_tiles.lower(shares(CAPACITY, side, side, 3), *to, mesh=mesh)
