"""Queue the tiles of many images in a buffer on the device, and encode them by chunks, with a fixed set of programs.

| program | what it does |
|---|---|
| `_new_buffer` | makes the empty buffer |
| `_append_image`, one for each size bucket | makes an image's tiles on the device and writes them at the queue's end |
| `_append_tiles` | writes tiles made on the host at the queue's end |
| `_encode_chunk`, one of CHUNK * batch_size tiles | encodes the front of the queue and moves the rest forward |
| `_encode_chunk`, one of batch_size tiles | does the same at the end of the stream |

A chunk may begin or end within an image.

On a mesh every device has a buffer. An image goes to the device with the fewest tiles waiting, which makes the image's
tiles while other devices make those of other images. One program then encodes a chunk on every device.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, UInt8

from multipatch_jax.encode.execution import Execution, on_each_device
from multipatch_jax.encode.jit import Program
from multipatch_jax.encode.programs import trace_encode
from multipatch_jax.image import MAX_GRID, PackedSteps, PreparedImage, blank_images, send_pieces, tile_padded
from multipatch_jax.params import Params

CAPACITY = MAX_GRID**2 + 1  # tiles written by one append: the most that an image in a size bucket has
CHUNK = 4  # batches of `batch_size` tiles in a chunk
Buffer = UInt8[Array, "tiles M M 3"]
Deliver = Callable[[np.ndarray], None]  # takes the tokens (T, D) of one tile


@dataclasses.dataclass
class StreamStats:
    """Counters of a stream, updated while it runs.

    Attributes:
      images: images taken from the iterable, those with an error included.
      tiles: tiles of these images.
      encoded: tiles that the tower encoded; fewer than `tiles` with a cache.
      padding: places in chunks that held no tile, but went through the tower all the same.
    """

    images: int = 0
    tiles: int = 0
    encoded: int = 0
    padding: int = 0

    @property
    def padding_waste(self) -> float:
        """Padding as a share of all that went through the tower, 0 to 1."""
        return self.padding / max(self.encoded + self.padding, 1)


def _buffer_size(execution: Execution) -> int:
    """Return the tiles that a device's buffer holds: a device that is appended to has less than a chunk waiting."""
    return CHUNK * execution.batch_size - 1 + CAPACITY


def _sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array whose first axis is split over all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


@functools.partial(jax.jit, static_argnames=("execution",))
def _new_buffer(*, execution: Execution) -> Buffer:
    side = execution.config.tiling.tile_size
    zeros = functools.partial(jnp.zeros, (_buffer_size(execution), side, side, 3), jnp.uint8)
    return on_each_device(zeros, execution.mesh)()


def _append(
    make_tiles: Callable[[Any, Any], UInt8[Array, "N M M 3"]],
    source: Any,
    buffer: Buffer,
    device: Int32[Array, ""],
    offset: Int32[Array, ""],
    steps: PackedSteps | None,
    mesh: Mesh | None,
) -> Buffer:
    """Write tiles into the buffer of one device, from `offset` on; the other devices keep their buffers and do nothing.

    Args:
      make_tiles: (source, steps) -> tiles.
      source: what the tiles are made of. On a mesh, every device has a share of its first axis, and one share is used.
      buffer: on a mesh, the buffers of all devices, concatenated by their first axis.
      device: index of the device in the flattened mesh; not used without a mesh.
      offset: number of tiles that already wait in the device's buffer.
      steps: the `PackedSteps` of an image; None for tiles made on the host.
    """

    def on_device(source, buffer, device, offset, steps):
        def append(buffer):
            return jax.lax.dynamic_update_slice(buffer, make_tiles(source, steps), (offset, *[np.int32(0)] * 3))

        if mesh is None:
            return append(buffer)
        return jax.lax.cond(jax.lax.axis_index(mesh.axis_names) == device, append, lambda buffer: buffer, buffer)

    shared_out = (True, True, False, False, False)
    return on_each_device(on_device, mesh, *shared_out)(source, buffer, device, offset, steps)


@functools.partial(jax.jit, static_argnames=("execution",), donate_argnames=("buffer",))
def _append_image(
    pixels: Any,
    buffer: Buffer,
    device: Int32[Array, ""],
    offset: Int32[Array, ""],
    *,
    steps: PackedSteps,
    execution: Execution,
) -> Buffer:
    tiling, form = execution.config.tiling, execution.resize_form

    def make_tiles(pixels, steps):
        return tile_padded(pixels, steps.unpack(), num_tiles=CAPACITY, tiling=tiling, form=form)

    return _append(make_tiles, pixels, buffer, device, offset, steps, execution.mesh)


@functools.partial(jax.jit, static_argnames=("execution",), donate_argnames=("buffer",))
def _append_tiles(
    tiles: UInt8[Array, "N M M 3"],
    buffer: Buffer,
    device: Int32[Array, ""],
    offset: Int32[Array, ""],
    *,
    execution: Execution,
) -> Buffer:
    return _append(lambda tiles, _: tiles, tiles, buffer, device, offset, None, execution.mesh)


def _encode_front(
    params: Params, buffer: Buffer, *, size: int, execution: Execution
) -> tuple[Float[Array, "N T D"], Buffer]:
    """Encode the first `size` tiles of every device's buffer; return their tokens, and the buffers moved forward."""
    on_one_device = dataclasses.replace(execution, mesh=None)

    def encode(params, buffer):
        return trace_encode(params, buffer[:size], on_one_device), jnp.roll(buffer, -size, axis=0)

    return on_each_device(encode, execution.mesh, False, True)(params, buffer)


_encode_chunk = Program(_encode_front, static=("size",), donated=("buffer",))


class TileQueue:
    """Tiles that wait in a buffer on each device, and for each tile a function that receives its tokens.

    The functions are called with NumPy arrays (T, D), in the order of each device's tiles, while the devices encode the
    next chunk.
    """

    def __init__(self, params: Params, execution: Execution, stats: StreamStats):
        """Make the empty buffer; `params` and `execution` are from `prepare_execution`."""
        self._params, self._execution, self._stats = params, execution, stats
        self._chunk = CHUNK * execution.batch_size
        self._mesh = execution.mesh
        # By shape: zeros on every device, which stand for the shares of devices that append nothing.
        self._placeholders: dict[tuple[int, ...], list[jax.Array]] = {}
        self._buffer = _new_buffer(execution=execution)
        # By device: the functions of the tiles in its buffer.
        self._waiting = [collections.deque[Deliver]() for _ in range(self._mesh.size if self._mesh else 1)]
        self._running: collections.deque[tuple[jax.Array, list[list[Deliver]]]] = collections.deque()

    def append(self, image: PreparedImage, deliver: Sequence[Deliver]) -> None:
        """Add the tiles of an image, with a function for each that receives its tokens."""
        if image.tiles is not None:
            self.append_tiles(image.tiles, deliver)
        else:
            self._append(functools.partial(_append_image, steps=image.steps), image.pixels, deliver)

    def append_tiles(self, tiles: UInt8[np.ndarray, "N M M 3"], deliver: Sequence[Deliver]) -> None:
        """Add any number of tiles made on the host, with a function for each that receives its tokens."""
        for start in range(0, len(tiles), CAPACITY):
            piece = tiles[start : start + CAPACITY]
            padded = np.zeros((CAPACITY, *tiles.shape[1:]), np.uint8)
            padded[: len(piece)] = piece
            self._append(_append_tiles, padded, deliver[start : start + CAPACITY])

    def flush(self) -> None:
        """Encode and deliver all tiles that are left."""
        while any(self._waiting):
            self._encode(self._execution.batch_size)
        while self._running:
            self._deliver()

    def _append(self, program: Callable[..., jax.Array], source: Any, deliver: Sequence[Deliver]) -> None:
        device = min(range(len(self._waiting)), key=lambda i: len(self._waiting[i]))
        offset = np.int32(len(self._waiting[device]))
        self._buffer = program(
            self._send(source, device), self._buffer, np.int32(device), offset, execution=self._execution
        )
        self._waiting[device] += deliver
        while min(map(len, self._waiting)) >= self._chunk:
            self._encode(self._chunk)

    def _send(self, source: Any, device: int) -> Any:
        """Send an array, or the pieces of an image, to one device; without a mesh, a call sends arrays by itself."""
        send = None if self._mesh is None else functools.partial(self._send_share, device=device)
        if isinstance(source, tuple):
            return send_pieces(source, send)
        return source if send is None else send(source)

    def _send_share(self, source: np.ndarray, device: int) -> jax.Array:
        """Send `source` to one device, as its share of an array over all devices; the other shares are placeholders."""
        assert self._mesh is not None
        devices = list(self._mesh.devices.flat)
        if source.shape not in self._placeholders:
            self._placeholders[source.shape] = [jax.device_put(np.zeros_like(source), one) for one in devices]
        shares = list(self._placeholders[source.shape])
        shares[device] = jax.device_put(source, devices[device])
        shape = (len(devices) * len(source), *source.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, _sharding(self._mesh), shares)

    def _encode(self, size: int) -> None:
        tokens, self._buffer = _encode_chunk(self._params, self._buffer, size=size, execution=self._execution)
        deliver = [[waiting.popleft() for _ in range(min(size, len(waiting)))] for waiting in self._waiting]
        self._running.append((tokens, deliver))
        encoded = sum(map(len, deliver))
        self._stats.encoded += encoded
        self._stats.padding += len(tokens) - encoded
        if len(self._running) > 1:  # deliver the chunk before, while the devices encode this one
            self._deliver()

    def _deliver(self) -> None:
        tokens, deliver = self._running.popleft()
        shares = np.split(np.asarray(tokens), len(deliver))
        for share, functions in zip(shares, deliver, strict=True):
            for take, row in zip(functions, share, strict=False):
                take(row)


def lower_stream(
    params: Params, execution: Execution, on_device: bool = True
) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Yield (name, program) for each program of a stream, lowered for arguments like those that `TileQueue` passes.

    Args:
      params, execution: from `prepare_execution`. Params may be `jax.ShapeDtypeStruct`s.
      on_device: whether images are tiled on the device.
    """
    mesh = execution.mesh
    sharding, devices = (_sharding(mesh), mesh.size) if mesh else (None, 1)

    def shares(*shape):  # on a single device, the queue passes NumPy arrays, which have no sharding
        shape = (devices * shape[0], *shape[1:])
        return jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding) if mesh else np.empty(shape, np.uint8)

    side, batch_size = execution.config.tiling.tile_size, execution.batch_size
    buffer = jax.ShapeDtypeStruct((devices * _buffer_size(execution), side, side, 3), np.uint8, sharding=sharding)
    place = (buffer, np.int32(0), np.int32(0))
    for size in {CHUNK * batch_size, batch_size}:
        yield f"encode {size} tiles", _encode_chunk.lower(params, buffer, size=size, execution=execution)
    for image in blank_images(execution.config.tiling, execution.resize_form) if on_device else ():
        name = f"append an image of {image.plan.height} pixels"
        pixels = jax.tree.map(lambda array: shares(*array.shape), image.pixels)
        yield name, _append_image.lower(pixels, *place, steps=image.steps, execution=execution)
    yield "new buffer", _new_buffer.lower(execution=execution)
    yield "append tiles", _append_tiles.lower(shares(CAPACITY, side, side, 3), *place, execution=execution)
