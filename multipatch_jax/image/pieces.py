"""Send an image to a GPU as its own bytes, in pieces of one size, and put it together there.

A bucket's program has a fixed number of arguments of PIECE bytes each. An image fills the first of them, and the others
are given its last piece once more, which is on the device already. So an image of 36 MB is sent as 12 pieces of 3 MiB,
whatever its bucket, and no byte of it is moved on the host but those of the last piece.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, UInt8

PIECE = 3 * 2**20  # bytes: all pixels of the smallest bucket


def cut_pieces(image: UInt8[np.ndarray, "H W 3"], side: int) -> tuple[UInt8[np.ndarray, " piece"], ...]:
    """Return as many pieces as the program of a bucket takes; all after the image's end are the same last piece.

    Args:
      image: of any memory layout. If its bytes lie row by row, all pieces but the last are views of them.
      side: of the bucket, in pixels.
    """
    own_bytes = np.ascontiguousarray(image).reshape(-1)
    whole, rest = divmod(own_bytes.size, PIECE)
    pieces = [own_bytes[i * PIECE : (i + 1) * PIECE] for i in range(whole)]
    if rest:
        pieces.append(np.concatenate([own_bytes[whole * PIECE :], np.zeros(PIECE - rest, np.uint8)]))
    return (*pieces, *pieces[-1:] * (side * side * 3 // PIECE - len(pieces)))


def send_pieces(pieces: tuple[Any, ...], send: Callable[[Any], Any] | None = None) -> tuple[Any, ...]:
    """Send every piece once, and return as many arrays on the device as there are pieces.

    Args:
      pieces: from `cut_pieces`.
      send: sends one piece, which it may read until the array that it returns is ready. None sends to the default
        device.
    """
    count = 1 + next(i for i, piece in enumerate(pieces) if piece is pieces[-1])
    sent = [(send or _send)(piece) for piece in pieces[:count]]
    return (*sent, *sent[-1:] * (len(pieces) - count))


def _send(piece: Any) -> jax.Array:
    # A CPU's array may be NumPy's own memory, which the caller may change.
    return jax.device_put(piece.copy() if jax.default_backend() == "cpu" else piece)


@contextlib.contextmanager
def on_device(pixels: Any) -> Iterator[Any]:
    """Give the block what its program takes: pieces as arrays on the device, and a padded image as it is.

    When the block ends, no memory of the caller's image is read any more, so that the caller may change it.
    """
    if not isinstance(pixels, tuple):
        yield pixels
        return
    sent = send_pieces(pixels)
    yield sent
    jax.block_until_ready(sent)


def join_pieces(
    pieces: tuple[UInt8[Array | np.ndarray, " piece"], ...], width: Int32[Array, ""]
) -> UInt8[Array, "side side 3"]:
    """Put an image together in the upper left corner of its bucket. Traceable.

    What lies beyond the image is of no meaning: it is the beginning of the next row, or of the repeated piece.

    Args:
      pieces: from `cut_pieces`.
      width: of the image, in pixels.
    """
    every_byte = jnp.concatenate(pieces)
    side = math.isqrt(every_byte.size // 3)
    row = functools.partial(lax.dynamic_slice_in_dim, every_byte, slice_size=3 * side)
    # No row is moved to lie inside: for H, W <= side, (H - 1) * W * 3 + 3 * side <= side * side * 3.
    return jax.vmap(row)(jnp.arange(side) * (3 * width)).reshape(side, side, 3)
