"""Resize an image on the device, byte for byte as the reference does.

A resize is two passes, one along each axis, each rounded to 8 bits. A pass is a product with a sparse matrix of
integers: every output pixel is a weighted sum of neighbouring source pixels. The weights come from the host
(`resamplers.py`) as arrays; the device never computes one.

A pass has two forms that give the same bytes:

* "gather" (`_gather_pass`), for CPUs: for every tap, gather the pixels and add their products.
* "banded" (`_banded_pass`), for accelerators: matrix products with dense blocks of the sparse matrix.

Images and weights may be padded to a bucket, so both forms take an argument `real`: the (height, width) of the valid
region of their result. Pixels beyond it are never used and need not be computed.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, UInt8

from multipatch_jax.resamplers import FILTERS, SHIFT, AxisWeights

FORMS = ("gather", "banded")
_BLOCK = 128  # outputs in a block of the banded form: the side of a TPU's matrix unit
# Rows in a block of the gather form: the number of ways of an L1 cache. Row strides are often powers of 2, and then all
# rows fall into the same set of the cache, which holds one row per way.
_ROWS = 8
_MAX_BANDED_TAPS = 514  # with more, float32 sums would not be exact: see `_banded_pass`


class ResizeStep(NamedTuple):
    """One resize of one image, as arrays.

    Attributes:
      vertical, horizontal: weights of the two passes; padded if the image is padded to a bucket.
      in_size, out_size: (height, width) of the valid region of the input and of the result, in pixels.
      vertical_first: whether the vertical pass comes first. None means always horizontal first, and then the program
        has no branch for the order.
    """

    vertical: AxisWeights
    horizontal: AxisWeights
    in_size: Int32[Array | np.ndarray, "2"]
    out_size: Int32[Array | np.ndarray, "2"]
    vertical_first: Bool[Array | np.ndarray, ""] | None


def default_resize_form(platform: str | None = None) -> str:
    """Return the faster form of `resize` for a platform: "gather" on a CPU, "banded" on accelerators.

    Accelerators have matrix units, which the banded form uses.

    Args:
      platform: such as "cpu" or "tpu"; None is the default backend.
    """
    return "gather" if (platform or jax.default_backend()) == "cpu" else "banded"


def _to_bytes(total: Int32[Array, "..."]) -> UInt8[Array, "..."]:
    return jnp.clip(jnp.right_shift(total + (1 << (SHIFT - 1)), SHIFT), 0, 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("axis",))  # under jit, so that one trace serves all taps of a shape
def _add_tap(total, x, along, tap, *, axis):
    pixels = jnp.take(x, along.starts + tap, axis, mode="clip").astype(jnp.int32)
    return total + pixels * jnp.expand_dims(along.weights[:, tap], (1, 2) if axis == 0 else (0, 2))


def _weighted_sum(x: UInt8[Array, "H W 3"], along: AxisWeights, axis: int) -> UInt8[Array, "H_out W_out 3"]:
    out = len(along.starts)
    total = jnp.zeros((out, *x.shape[1:]) if axis == 0 else (x.shape[0], out, 3), jnp.int32)
    for tap in range(along.weights.shape[1]):
        total = _add_tap(total, x, along, tap, axis=axis)
    return _to_bytes(total)


def _gather_pass(
    x: UInt8[Array, "H W 3"], along: AxisWeights, axis: int, support: int, real: tuple[Any, Any]
) -> UInt8[Array, "H_out W_out 3"]:
    """Run one pass as a sum over taps, in blocks of `_ROWS` output rows.

    `lax.cond` around a block has three purposes:

    * Blocks without a valid row are not computed; they are zeros.
    * XLA's CPU compiler spreads the branch of a conditional over the cores. It does not do so with the body of a loop.
    * XLA does not compute this pass again inside the next one.
    """
    shape = (len(along.starts), *x.shape[1:]) if axis == 0 else (x.shape[0], len(along.starts), 3)
    rows = min(_ROWS, shape[0])

    def compute(first):
        if axis == 0:
            block = AxisWeights(*(lax.dynamic_slice_in_dim(array, first, rows) for array in along))
            return _weighted_sum(x, block, 0)
        return _weighted_sum(lax.dynamic_slice_in_dim(x, first, rows), along, 1)

    def body(i, result):
        first = jnp.minimum(i * rows, shape[0] - rows)
        zeros = jnp.zeros((rows, *shape[1:]), jnp.uint8)
        block = lax.cond(i * rows < real[0], compute, lambda _: zeros, first)
        return lax.dynamic_update_slice_in_dim(result, block, first, 0)

    return lax.fori_loop(0, -(-shape[0] // rows), body, jnp.zeros(shape, jnp.uint8))


def _banded_pass(
    x: UInt8[Array, "3 H W"], along: AxisWeights, axis: int, support: int, real: tuple[Any, Any]
) -> UInt8[Array, "3 H_out W_out"]:
    """Run one pass as matrix products: each block of 128 outputs is a product with the window of `x` that it reads.

    The products are exact. Each weight is split into three signed 8-bit limbs, so bfloat16 holds limbs and pixels
    exactly. Float32 holds their sums exactly up to 514 taps, as taps * 128 * 255 < 2**24.
    """
    out, taps = along.weights.shape
    blocks = -(-out // _BLOCK)
    all_starts = jnp.pad(along.starts, (0, blocks * _BLOCK - out), mode="edge").reshape(blocks, _BLOCK)
    all_weights = jnp.pad(along.weights, ((0, blocks * _BLOCK - out), (0, 0))).reshape(blocks, _BLOCK, taps)
    # Neighbouring outputs are `scale` source pixels apart, and taps = 2 * support * scale, within 1. So a block of
    # outputs reads at most this many source pixels:
    window = math.ceil((_BLOCK - 1) * (taps + 1) / (2 * support)) + taps + 1
    rows = jnp.moveaxis(x, axis + 1, 0)
    length, window = -(-len(rows) // 8) * 8, -(-(window + 7) // 8) * 8  # multiples of a TPU's 8 sublanes
    window = min(window, length)
    rows = jnp.pad(rows, ((0, length - len(rows)), (0, 0), (0, 0))).reshape(-1, 8, *rows.shape[1:])

    def body(i, result):
        starts, weights = all_starts[i], all_weights[i]
        first = jnp.minimum(starts[0] // 8, (length - window) // 8)
        offset = starts[:, None] - first * 8
        band = jnp.int32(0)
        for tap in range(taps):
            band += jnp.where(offset + tap == jnp.arange(window)[None], weights[:, tap, None], 0)
        pixels = lax.dynamic_slice_in_dim(rows, first, window // 8).reshape(window, *rows.shape[2:])
        total = jnp.int32(0)
        for limb in range(3):
            low = ((band + 128) & 255) - 128 if limb < 2 else band
            band = jnp.right_shift(band - low, 8)
            factors = low.astype(jnp.bfloat16), pixels.astype(jnp.bfloat16)
            part = jnp.einsum("ok,kcw->ocw", *factors, preferred_element_type=jnp.float32)
            total += part.astype(jnp.int32) << (8 * limb)
        block = _to_bytes(total).transpose((1, 0, 2) if axis == 0 else (1, 2, 0))
        return lax.dynamic_update_slice_in_dim(result, block, i * _BLOCK, axis + 1)

    shape = (3, blocks * _BLOCK, x.shape[2]) if axis == 0 else (3, x.shape[1], blocks * _BLOCK)
    trips = (real[axis] + _BLOCK - 1) // _BLOCK
    result = lax.fori_loop(0, trips, body, lax.empty(shape, jnp.uint8))
    return lax.slice_in_dim(result, 0, out, axis=axis + 1)


def _cond(predicate: Any, true_fun: Callable, false_fun: Callable, x: UInt8[Array, "..."]) -> UInt8[Array, "..."]:
    """`lax.cond` for a JAX predicate. Any other predicate is known while tracing, so one branch is taken at once."""
    if isinstance(predicate, jax.Array):
        return lax.cond(predicate, true_fun, false_fun, x)
    return (true_fun if predicate else false_fun)(x)


def _fit(x: UInt8[Array, "..."], axis: int, size: int) -> UInt8[Array, "..."]:
    """Cut or zero-pad an axis to `size`."""
    x = lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, padding)


def resize(
    x: UInt8[Array, "H W 3"], step: ResizeStep, *, filter: str = "lanczos", form: str = "gather"
) -> UInt8[Array, "H_out W_out 3"]:
    """Resize an image on the device. Traceable, and equal to the reference in every byte of the valid region.

    Args:
      x: pixels. Those beyond `step.in_size` have no influence.
      step: weights and sizes. The numbers of outputs in the weights are the shape of the result. The pass along an axis
        is skipped if its sizes are equal: decided while tracing for sizes in NumPy, and by `lax.cond` when the program
        runs for sizes in JAX arrays, traced or not. The same holds for `vertical_first`.
      filter: name of the filter that the weights were made with.
      form: "gather" or "banded"; both give the same bytes. "gather" also serves for "banded" where a pass has
        more than 514 taps.

    Returns:
      The resized image. Pixels beyond `step.out_size` are undefined.
    """
    weights = [
        AxisWeights(jnp.asarray(one.starts), jnp.asarray(one.weights)) for one in (step.vertical, step.horizontal)
    ]
    in_size, out_size = tuple(step.in_size), tuple(step.out_size)
    # The banded form has channels first. XLA gives the inputs and results of a conditional its default layout, in
    # which a TPU would pad a last axis of 3 to 128.
    planar = form == "banded" and max(one.weights.shape[1] for one in weights) <= _MAX_BANDED_TAPS
    one_pass = _banded_pass if planar else _gather_pass

    def run_pass(axis, x, real):
        """Run the pass along an axis. Where the reference skips it, only cut or pad to the result's length."""
        return _cond(
            in_size[axis] != out_size[axis],
            lambda x: one_pass(x, weights[axis], axis, FILTERS[filter].support, real),
            lambda x: _fit(x, axis + planar, len(weights[axis].starts)),
            x,
        )

    x = x.transpose(2, 0, 1) if planar else x
    x = _cond(
        step.vertical_first,
        lambda x: run_pass(1, run_pass(0, x, (out_size[0], in_size[1])), out_size),
        lambda x: run_pass(0, run_pass(1, x, (in_size[0], out_size[1])), out_size),
        x,
    )
    return x.transpose(1, 2, 0) if planar else x
