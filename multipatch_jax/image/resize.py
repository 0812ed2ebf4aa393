"""The reference's resize, to the byte: two integer passes with a rounding to 8 bits between them.

A pass is a sparse matrix along one axis: every output pixel is a weighted sum of neighbouring source pixels. Weights
are made on the host in float64 with the reference's own order of operations (Pillow's `Resample.c`, torch's
`UpSampleKernel.cpp`) and rounded to integers. From then on they are data: the device never computes a weight.
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

from multipatch_jax.image.filters import SHIFT, SUPPORT, AxisWeights

_BLOCK = 128  # outputs of a block of the banded form: the side of a TPU's matrix unit
_ROWS = 8  # rows of a block of the gather form: an L1 cache's ways, as row strides are often powers of 2
_MAX_BANDED_TAPS = 514


class ResizeStep(NamedTuple):
    """One resize. The sizes, (height, width), say how much of a padded array is real; None is never."""

    vertical: AxisWeights
    horizontal: AxisWeights
    in_size: Int32[Array | np.ndarray, "2"]
    out_size: Int32[Array | np.ndarray, "2"]
    vertical_first: Bool[Array | np.ndarray, ""] | None


def default_resize_implementation() -> str:
    """The form that suits the backend: a CPU gathers well, an accelerator has a matrix unit."""
    return "gather" if jax.default_backend() == "cpu" else "banded"


def _to_bytes(total: Int32[Array, "..."]) -> UInt8[Array, "..."]:
    return jnp.clip(jnp.right_shift(total + (1 << (SHIFT - 1)), SHIFT), 0, 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("axis",))  # traced and lowered once for all taps of a shape
def _add_tap(total, x, filter, tap, *, axis):
    pixels = jnp.take(x, filter.starts + tap, axis, mode="clip").astype(jnp.int32)
    return total + pixels * jnp.expand_dims(filter.weights[:, tap], (1, 2) if axis == 0 else (0, 2))


def _weighted_sum(x: UInt8[Array, "H W 3"], filter: AxisWeights, axis: int) -> UInt8[Array, "h w 3"]:
    out = len(filter.starts)
    total = jnp.zeros((out, *x.shape[1:]) if axis == 0 else (x.shape[0], out, 3), jnp.int32)
    for tap in range(filter.weights.shape[1]):
        total = _add_tap(total, x, filter, tap, axis=axis)
    return _to_bytes(total)


def _gather_pass(
    x: UInt8[Array, "H W 3"], filter: AxisWeights, axis: int, support: int, real: tuple[Any, Any]
) -> UInt8[Array, "h w 3"]:
    """A sum over taps, in blocks of output rows.

    The conditional does three things: blocks without a real row are left out; XLA's CPU compiler spreads its branches
    over the cores, but not the body of a loop; and it keeps one pass from being computed anew inside the next.
    """
    shape = (len(filter.starts), *x.shape[1:]) if axis == 0 else (x.shape[0], len(filter.starts), 3)
    rows = min(_ROWS, shape[0])

    def compute(first):
        if axis == 0:
            block = AxisWeights(*(lax.dynamic_slice_in_dim(array, first, rows) for array in filter))
            return _weighted_sum(x, block, 0)
        return _weighted_sum(lax.dynamic_slice_in_dim(x, first, rows), filter, 1)

    def body(i, result):
        first = jnp.minimum(i * rows, shape[0] - rows)
        zeros = jnp.zeros((rows, *shape[1:]), jnp.uint8)
        block = lax.cond(i * rows < real[0], compute, lambda _: zeros, first)
        return lax.dynamic_update_slice_in_dim(result, block, first, 0)

    return lax.fori_loop(0, -(-shape[0] // rows), body, jnp.zeros(shape, jnp.uint8))


def _banded_pass(
    x: UInt8[Array, "3 H W"], filter: AxisWeights, axis: int, support: int, real: tuple[Any, Any]
) -> UInt8[Array, "3 h w"]:
    """Blocks of 128 outputs, each a matrix product with the window of x that it reads.

    Weights are split in three signed 8-bit limbs, so that bfloat16 holds them and the pixels exactly, and float32 their
    sums: up to 514 taps, taps * 128 * 255 < 2**24.
    """
    out, taps = filter.weights.shape
    blocks = -(-out // _BLOCK)
    all_starts = jnp.pad(filter.starts, (0, blocks * _BLOCK - out), mode="edge").reshape(blocks, _BLOCK)
    all_weights = jnp.pad(filter.weights, ((0, blocks * _BLOCK - out), (0, 0))).reshape(blocks, _BLOCK, taps)
    # Neighbouring outputs are `scale` source pixels apart, and 2 * support * scale of those are `taps`, give or take 1.
    window = math.ceil((_BLOCK - 1) * (taps + 1) / (2 * support)) + taps + 1
    rows = jnp.moveaxis(x, axis + 1, 0)
    length, window = -(-len(rows) // 8) * 8, -(-(window + 7) // 8) * 8  # in eights, a TPU's sublanes
    window = min(window, length)
    rows = jnp.pad(rows, ((0, length - len(rows)), (0, 0), (0, 0))).reshape(-1, 8, *rows.shape[1:])

    def body(i, result):
        starts, weights = all_starts[i], all_weights[i]
        first = jnp.minimum(starts[0] // 8, (length - window) // 8)
        offset = starts[:, None] - first * 8
        band = jnp.int32(0)
        for tap in range(taps):
            band += jnp.where(offset + tap == jnp.arange(window), weights[:, tap, None], 0)
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
    """`lax.cond`, decided at once when the predicate is known while tracing."""
    if isinstance(predicate, jax.Array):
        return lax.cond(predicate, true_fun, false_fun, x)
    return (true_fun if predicate else false_fun)(x)


def _fit(x: UInt8[Array, "..."], axis: int, size: int) -> UInt8[Array, "..."]:
    x = lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, padding)


def resize(
    x: UInt8[Array, "H W 3"], plan: ResizeStep, *, filter: str = "lanczos", implementation: str = "gather"
) -> UInt8[Array, "h w 3"]:
    """One resize on the device; traceable, and exact in every byte that is real.

    Args:
      x: pixels; what lies beyond `plan.in_size` has no influence.
      plan: the weights, whose lengths are the result's shape, and the sizes, which say what passes are skipped. What is
        NumPy is decided while tracing.
      filter: what the weights were made for.
      implementation: "gather" or "banded", the same bytes.

    Returns:
      The result; what lies beyond `plan.out_size` is undefined.
    """
    filters = [
        AxisWeights(jnp.asarray(one.starts), jnp.asarray(one.weights)) for one in (plan.vertical, plan.horizontal)
    ]
    in_size, out_size = tuple(plan.in_size), tuple(plan.out_size)
    # XLA gives what enters or leaves a conditional its default layout, in which a TPU pads a last axis of 3 to 128.
    planar = implementation == "banded" and max(one.weights.shape[1] for one in filters) <= _MAX_BANDED_TAPS
    one_pass = _banded_pass if planar else _gather_pass

    def along(axis, x, real):
        """The pass along an axis; where the reference skips it, no more than its padding."""
        return _cond(
            in_size[axis] != out_size[axis],
            lambda x: one_pass(x, filters[axis], axis, SUPPORT[filter], real),
            lambda x: _fit(x, axis + planar, len(filters[axis].starts)),
            x,
        )

    x = x.transpose(2, 0, 1) if planar else x
    x = _cond(
        plan.vertical_first,
        lambda x: along(1, along(0, x, (out_size[0], in_size[1])), out_size),
        lambda x: along(0, along(1, x, (in_size[0], out_size[1])), out_size),
        x,
    )
    return x.transpose(1, 2, 0) if planar else x
