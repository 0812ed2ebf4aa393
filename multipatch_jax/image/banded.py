"""A pass of a resize as matrix products, for accelerators: exact, and fast on their matrix units.

The sparse matrix of a pass is a band. A block of 128 outputs reads one window of source pixels, so it is a product of
the window with a dense block of the matrix (`_bands`).

The products are exact. Each weight is split into three signed 8-bit limbs, so bfloat16 holds limbs and pixels exactly.
Float32 holds their sums exactly up to 514 taps, as taps * 128 * 255 < 2**24.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Int32, UInt8

from multipatch_jax.resamplers import SHIFT, AxisWeights

MAX_TAPS = 514  # with more, float32 sums would not be exact
_BLOCK = 128  # outputs in a block: the side of a TPU's matrix unit
_LIMBS = 3
_STRIPS = 4  # of rows, if the number of valid rows is data


def to_bytes(total: Int32[Array, "..."]) -> UInt8[Array, "..."]:
    """Round sums of products in units of 2**-22 to bytes, as the reference does."""
    return jnp.clip(jnp.right_shift(total + (1 << (SHIFT - 1)), SHIFT), 0, 255).astype(jnp.uint8)


def _blocks(along: AxisWeights) -> tuple[Int32[Array, "blocks 128"], Int32[Array, "blocks 128 taps"]]:
    """Return starts and weights by blocks; those added to fill the last block give 0."""
    out, taps = along.weights.shape
    blocks = -(-out // _BLOCK)
    starts = jnp.pad(along.starts, (0, blocks * _BLOCK - out), mode="edge").reshape(blocks, _BLOCK)
    return starts, jnp.pad(along.weights, ((0, blocks * _BLOCK - out), (0, 0))).reshape(blocks, _BLOCK, taps)


def _window(taps: int, support: int) -> int:
    """Return the most source pixels that a block reads.

    Neighbouring outputs are `scale` source pixels apart, and taps = 2 * support * scale, within 1.
    """
    return math.ceil((_BLOCK - 1) * (taps + 1) / (2 * support)) + taps + 1


def _limbs(
    offset: Int32[Array, "*blocks 128"], weights: Int32[Array, "*blocks 128 taps"], window: int
) -> list[BFloat16[Array, "*blocks 128 window"]]:
    """Return the dense blocks of the matrix as three limbs each, the lowest first.

    Args:
      offset: the place in the window of the first pixel that an output reads.
    """
    band = jnp.int32(0)
    for tap in range(weights.shape[-1]):
        here = offset[..., None] + tap == jnp.arange(window)[None, None]
        band += jnp.where(here, weights[..., tap, None], 0)
    limbs = []
    for limb in range(_LIMBS):
        low = ((band + 128) & 255) - 128 if limb < _LIMBS - 1 else band
        band = jnp.right_shift(band - low, 8)
        limbs.append(low.astype(jnp.bfloat16))
    return limbs


def banded_pass(
    x: UInt8[Array, "3 H W"], along: AxisWeights, axis: int, support: int, real: tuple[Any, Any]
) -> UInt8[Array, "3 H_out W_out"]:
    """Run one pass block by block, only those that hold a valid output.

    The horizontal pass goes by strips of rows too, only those that hold a valid row.

    Args:
      x: pixels, channels first.
      along: weights of the pass.
      axis: 0 is the vertical pass, 1 the horizontal one.
      support: of the filter.
      real: (height, width) of the valid region of the result.
    """
    starts, weights = _blocks(along)
    length, across = x.shape[axis + 1], x.shape[2 - axis]
    padded = -(-length // 8) * 8  # lengths and windows are multiples of a TPU's 8 sublanes
    window = min(-(-(_window(along.weights.shape[1], support) + 7) // 8) * 8, padded)
    first = jnp.minimum(starts[:, 0] // 8, (padded - window) // 8)
    limbs = lax.optimization_barrier(_limbs(starts - first[:, None] * 8, weights, window))  # made once, not in the loop
    strips = _STRIPS if axis == 1 and isinstance(real[0], jax.Array) else 1
    size = -(-across // strips)
    if strips > 1:
        x = jnp.pad(x, ((0, 0), (0, strips * size - across), (0, 0))).reshape(3, strips, size, length)

    def one_strip(j, result):
        strip = jnp.moveaxis(x if strips == 1 else lax.dynamic_index_in_dim(x, j, 1, False), axis + 1, 0)
        strip = jnp.pad(strip, ((0, padded - length), (0, 0), (0, 0))).reshape(-1, 8, 3, size)

        def one_block(i, result):
            pixels = lax.dynamic_slice_in_dim(strip, first[i], window // 8).reshape(window, 3, size)
            total = jnp.int32(0)
            for limb, factors in enumerate(limbs):
                operands = factors[i], pixels.astype(jnp.bfloat16)
                part = jnp.einsum("ok,kcw->ocw", *operands, preferred_element_type=jnp.float32)
                total += part.astype(jnp.int32) << (8 * limb)
            block = to_bytes(total).transpose((1, 0, 2) if axis == 0 else (1, 2, 0))
            at = (0, i * _BLOCK, 0) if axis == 0 else (0, j * size, i * _BLOCK)
            return lax.dynamic_update_slice(result, block, at)

        return lax.fori_loop(0, (real[axis] + _BLOCK - 1) // _BLOCK, one_block, result)

    out = len(starts) * _BLOCK
    result = lax.empty((3, out, across) if axis == 0 else (3, strips * size, out), jnp.uint8)
    result = one_strip(0, result) if strips == 1 else lax.fori_loop(0, (real[0] + size - 1) // size, one_strip, result)
    rows, cols = (len(along.starts), across) if axis == 0 else (across, len(along.starts))
    return result[:, :rows, :cols]


def batched_pass(
    x: UInt8[Array, "3 H W"], along: AxisWeights, axis: int, support: int, real: tuple[Any, Any]
) -> UInt8[Array, "3 H_out W_out"]:
    """Run one pass as one batched matrix product, valid outputs or not; the arguments are those of `banded_pass`.

    A GPU's host reads back whether a loop goes on, so a loop whose number of trips is data keeps the GPU waiting.
    """
    starts, weights = _blocks(along)
    window = min(_window(along.weights.shape[1], support), x.shape[axis + 1])
    first = jnp.minimum(starts[:, 0], x.shape[axis + 1] - window)
    limbs = jnp.stack(_limbs(starts - first[:, None], weights, window), axis=1)
    pixels = jax.vmap(lambda at: lax.dynamic_slice_in_dim(x, at, window, axis + 1))(first).astype(jnp.bfloat16)
    product = "blok,bckw->lcbow" if axis == 0 else "blok,bchk->lchbo"
    parts = jnp.einsum(product, limbs, pixels, preferred_element_type=jnp.float32).astype(jnp.int32)
    total = parts[0] + (parts[1] << 8) + (parts[2] << 16)
    result = to_bytes(total).reshape((3, -1, x.shape[2]) if axis == 0 else (3, x.shape[1], -1))
    return lax.slice_in_dim(result, 0, len(along.starts), axis=axis + 1)
