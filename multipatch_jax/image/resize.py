"""Resize an image on the device, byte for byte as the reference does.

A resize is two passes, one along each axis, each rounded to 8 bits. A pass is a product with a sparse matrix of
integers: every output pixel is a weighted sum of neighbouring source pixels. The weights come from the host
(`resamplers.py`) as arrays; the device never computes one.

A pass has three forms that give the same bytes:

| form | for | what it does |
|---|---|---|
| "gather" (`_gather_pass`) | CPUs | for every tap, gathers the pixels and adds their products |
| "banded" (`banded.py`) | TPUs | matrix products with dense blocks of the sparse matrix, one after another |
| "batched" (`banded.py`) | GPUs | the same products, all at once |

Images and weights may be padded to a bucket, so all forms take an argument `real`: the (height, width) of the valid
region of their result. Pixels beyond it are never used and need not be computed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, UInt8

from multipatch_jax.image.banded import MAX_TAPS, banded_pass, batched_pass, to_bytes
from multipatch_jax.resamplers import FILTERS, AxisWeights

FORMS = ("gather", "banded", "batched")
# Rows in a block of the gather form: the number of ways of an L1 cache. Row strides are often powers of 2, and then all
# rows fall into the same set of the cache, which holds one row per way.
_ROWS = 8


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
    """Return the fastest form of `resize` for a platform: "gather" on a CPU, "banded" on a TPU, "batched" on a GPU.

    Args:
      platform: such as "cpu" or "tpu"; None is the default backend.
    """
    return {"cpu": "gather", "tpu": "banded"}.get(platform or jax.default_backend(), "batched")


@functools.partial(jax.jit, static_argnames=("axis",))  # under jit, so that one trace serves all taps of a shape
def _add_tap(total, x, along, tap, *, axis):
    pixels = jnp.take(x, along.starts + tap, axis, mode="clip").astype(jnp.int32)
    return total + pixels * jnp.expand_dims(along.weights[:, tap], (1, 2) if axis == 0 else (0, 2))


def _weighted_sum(x: UInt8[Array, "H W 3"], along: AxisWeights, axis: int) -> UInt8[Array, "H_out W_out 3"]:
    out = len(along.starts)
    total = jnp.zeros((out, *x.shape[1:]) if axis == 0 else (x.shape[0], out, 3), jnp.int32)
    for tap in range(along.weights.shape[1]):
        total = _add_tap(total, x, along, tap, axis=axis)
    return to_bytes(total)


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
        runs for sizes in JAX arrays, traced or not. The same holds for `vertical_first`. With such sizes, "banded" and
        "batched" skip both passes or none: the weights for equal sizes are the identity.
      filter: name of the filter that the weights were made with.
      form: "gather", "banded" or "batched"; all give the same bytes. "gather" also serves for the others where a pass
        has more than 514 taps.

    Returns:
      The resized image. Pixels beyond `step.out_size` are undefined.
    """
    weights = [
        AxisWeights(jnp.asarray(one.starts), jnp.asarray(one.weights)) for one in (step.vertical, step.horizontal)
    ]
    in_size, out_size = tuple(step.in_size), tuple(step.out_size)
    differs = [a != b for a, b in zip(in_size, out_size, strict=True)]
    matrices = form != "gather" and max(one.weights.shape[1] for one in weights) <= MAX_TAPS
    one_pass = {"banded": banded_pass, "batched": batched_pass}[form] if matrices else _gather_pass

    def run(axis, x, real):
        return one_pass(x, weights[axis], axis, FILTERS[filter].support, real)

    def fit(axis, x):
        return _fit(x, axis + matrices, len(weights[axis].starts))

    def run_if_needed(axis, x, real):
        """Run the pass along an axis. Where the reference skips it, only cut or pad to the result's length."""
        if matrices and isinstance(differs[axis], jax.Array):
            return run(axis, x, real)  # equal sizes have the weights of the identity
        return _cond(differs[axis], lambda x: run(axis, x, real), lambda x: fit(axis, x), x)

    def both_passes(x):
        return _cond(
            step.vertical_first,
            lambda x: run_if_needed(1, run_if_needed(0, x, (out_size[0], in_size[1])), out_size),
            lambda x: run_if_needed(0, run_if_needed(1, x, (in_size[0], out_size[1])), out_size),
            x,
        )

    if not matrices:
        return both_passes(x)
    # Matrix products have channels first. XLA gives the inputs and results of a conditional its default layout, in
    # which a TPU would pad a last axis of 3 to 128. There are few conditionals, because each moves its input and result
    # to that layout.
    x = _cond(differs[0] | differs[1], both_passes, lambda x: fit(1, fit(0, x)), x.transpose(2, 0, 1))
    return x.transpose(1, 2, 0)
