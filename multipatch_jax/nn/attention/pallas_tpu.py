"""Attention for TPUs, in Pallas: scores stay on the chip, and q, k and v are read without a transpose."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multipatch_jax.nn.attention.plain import one_head, plain

LANES = 128  # numbers in a row of a TPU's vector register; memory is read in such rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def pallas_tpu(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P h d"]:
    """Run our kernel forward, and the gradient of `plain` backward.

    One step of the grid computes a block of queries against all keys, for as many heads as fill whole registers (two
    heads of 64, or all sixteen of 72). The keys stay on the chip for the next blocks of queries. A step takes all heads
    where their number does not divide into such groups. Nothing is padded here: the compiler takes care of 729 patches,
    of heads of 72, and of a last block of queries that ends beyond the last patch.
    """
    from jax.experimental import pallas as pl  # takes half a second, and only TPUs need it
    from jax.experimental.pallas import tpu as pltpu

    patches, heads, width = q.shape
    group = math.lcm(width, LANES) // width
    lanes = (heads if heads % group else group) * width
    blocks = -(-4 * patches**2 // 2**21)  # of queries, so that the scores of a block are at most about 2 MB
    queries = patches if blocks == 1 else -(-patches // (16 * blocks)) * 16  # a bfloat16 register has 16 rows

    def kernel(q_ref, k_ref, v_ref, *refs):
        out_ref, valid = refs[-1], None if mask is None else refs[0][0] != 0
        for start in range(0, lanes, width):
            head = pl.ds(start, width)
            out = one_head(q_ref[:, head], k_ref[:, head], v_ref[:, head], mask=valid, precision=precision)
            out_ref[:, head] = out

    rows = pl.BlockSpec((queries, lanes), lambda group, block: (block, group))
    whole = pl.BlockSpec((patches, lanes), lambda group, block: (0, group))
    every = pl.BlockSpec((1, patches), lambda group, block: (0, 0))
    arrays = [x.reshape(patches, heads * width) for x in (q, k, v)]
    itemsize = q.dtype.itemsize
    call = pl.pallas_call(
        kernel,
        grid=(heads * width // lanes, pl.cdiv(patches, queries)),
        in_specs=[rows, whole, whole] + ([] if mask is None else [every]),
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct((patches, heads * width), q.dtype),
        cost_estimate=pl.CostEstimate(  # q, k, v and the result are each read or written once
            flops=4 * patches**2 * heads * width,
            bytes_accessed=4 * q.size * itemsize,
            transcendentals=patches**2 * heads,
        ),
        # Two of each block (one is fetched while the other is computed with), copies of the scores, and 16 MB for
        # the compiler's own use. For 16 heads of 72 in bfloat16 that is 34 MB (729 patches) or 42 MB (676 patches);
        # the chips have 64 to 128 MB.
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=4 * (queries + patches) * lanes * itemsize + 8 * queries * patches * 4 + 2**24
        ),
    )
    return call(*arrays, *([] if mask is None else [mask[None].astype(jnp.int32)])).reshape(q.shape)


def _pallas_tpu_forward(q, k, v, mask, precision):
    return pallas_tpu(q, k, v, mask, precision), (q, k, v, mask)


def _pallas_tpu_backward(precision, saved, gradient):
    *qkv, mask = saved
    _, vjp = jax.vjp(lambda q, k, v: plain(q, k, v, mask, precision), *qkv)
    return *vjp(gradient), None


pallas_tpu.defvjp(_pallas_tpu_forward, _pallas_tpu_backward)
