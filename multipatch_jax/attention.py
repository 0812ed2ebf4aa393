"""Bidirectional multi-head attention of one tile: one function, one implementation per backend."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend
from jaxtyping import Array, Bool, Float

from multipatch_jax import native
from multipatch_jax.linear import BLOCK

IMPLEMENTATIONS = ("plain", "blocked", "native", "pallas_tpu", "cudnn")
QUERIES = 512  # of a block, at most: 2 MB of scores stay in cache, and fewer rows make slower matmuls
LANES = 128  # of a TPU's registers, which its memory is read in


def resolve_implementation(implementation: str, dtype: str | None, platform: str | None = None) -> str:
    """What "auto" means for a computation in `dtype`; decided before tracing, as it is part of the program.

    Args:
      platform: what the program is for, "cpu", "tpu", "cuda" or "rocm", wherever it will run: compiled code of ours is
        not part of it. None is the machine that this runs on.

    Raises:
      ValueError: "native" where it is not to be had.
    """
    if implementation == "native" and (dtype != "float32" or platform is not None or not native.best_build()):
        raise ValueError(
            'attention="native" is for float32 on a CPU, in a program for this machine, where the compiled encoder was '
            f"built (pip install it again, with a C++ compiler); got {dtype}, {platform or 'this machine'} and the "
            f'builds {native.builds()}. Use "auto".'
        )
    if implementation != "auto":
        return implementation
    if platform is None:
        if dtype == "float32" and jax.default_backend() == "cpu" and native.best_build():
            return "native"
        platform = jax.default_backend()
        if platform == "gpu" and "cuda" in get_backend().platform_version:
            # cuDNN's kernel is for Ampere and later.
            platform = "cuda" if float(jax.local_devices()[0].compute_capability) >= 8 else "gpu"
    if platform == "cuda":
        return "cudnn" if dtype in ("bfloat16", "float16") else "plain"
    return {"cpu": "blocked", "tpu": "pallas_tpu"}.get(platform, "plain")


def attention(
    q: Float[Array, "P H d"],
    k: Float[Array, "P H d"],
    v: Float[Array, "P H d"],
    *,
    mask: Bool[Array, " P"] | None = None,
    implementation: str = "plain",
    precision: str | None = None,
) -> Float[Array, "P H d"]:
    """softmax(q k^T / sqrt(d)) v over the P patches of one tile, for H heads of width d.

    Args:
      q, k, v: one dtype, which is also the result's.
      mask: True for the patches that may be attended to. Masked keys get no weight; masked queries are still computed,
        as in the reference.
      implementation: static. "plain" makes all (H, P, P) scores at once; "blocked" those of one head and at most 512
        queries at a time, so that they stay in a CPU's cache, forward and backward; "native", an encoder that is
        compiled whole, is "blocked" in what it leaves to JAX: masks and gradients. "pallas_tpu" is a kernel that keeps
        them on the chip; its backward pass is plain's. "cudnn" is that library's kernel, for 16-bit inputs on CUDA;
        with a mask, which its backward pass does not take for odd P, it is "plain".
      precision: of the two matmuls, for float32 inputs.

    The softmax is always float32, and the scale is applied to its float32 scores: scaling q would round it once more
    in bfloat16 wherever d is not a power of four (So400m: 72).
    """
    if implementation == "plain" or (implementation == "cudnn" and mask is not None):
        return _plain(q, k, v, mask, precision)
    if implementation in ("blocked", "native"):
        return _blocked(q, k, v, mask, precision)
    if implementation == "pallas_tpu":
        return _pallas_tpu(q, k, v, mask, precision)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}.")


def _one_head(
    q: Float[Array, "Q d"],
    k: Float[Array, "K d"],
    v: Float[Array, "K d"],
    *,
    mask: Bool[Array, " K"] | None,
    precision: str | None,
) -> Float[Array, "Q d"]:
    scores = jnp.einsum("qd,kd->qk", q, k, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    # The softmax, divided by its sum last: d numbers a query rather than K.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    # In float32, sums over many keys are made block by block, for the reason given in linear.matmul.
    step = BLOCK if v.dtype == jnp.float32 and precision == "highest" else len(v)
    dot = functools.partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)
    blocks = (dot(weights[:, i : i + step], v[i : i + step]) for i in range(0, len(v), step))
    return (functools.reduce(jnp.add, blocks) / total).astype(v.dtype)


def _plain(
    q: Float[Array, "P H d"],
    k: Float[Array, "P H d"],
    v: Float[Array, "P H d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P H d"]:
    heads = jax.vmap(functools.partial(_one_head, mask=mask, precision=precision), in_axes=1, out_axes=1)
    return heads(q, k, v)


def _blocked(
    q: Float[Array, "P H d"],
    k: Float[Array, "P H d"],
    v: Float[Array, "P H d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P H d"]:
    patches, heads, width = q.shape
    blocks = -(-patches // QUERIES)
    queries = -(-patches // blocks)  # 729 patches are two blocks of 365, not 512 and a padded rest
    q, k, v = (x.transpose(1, 0, 2) for x in (q, k, v))
    q = jnp.pad(q, ((0, 0), (0, blocks * queries - patches), (0, 0)))

    @jax.checkpoint  # the backward pass makes the scores of a block again, rather than keep those of all
    def block(index):
        head, row = index // blocks, index % blocks * queries
        rows = jax.lax.dynamic_slice(q, (head, row, 0), (1, queries, width))[0]
        return _one_head(rows, k[head], v[head], mask=mask, precision=precision)

    out = jax.lax.map(block, jnp.arange(heads * blocks))
    return out.reshape(heads, blocks * queries, width)[:, :patches].transpose(1, 0, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _pallas_tpu(
    q: Float[Array, "P H d"],
    k: Float[Array, "P H d"],
    v: Float[Array, "P H d"],
    mask: Bool[Array, " P"] | None,
    precision: str | None,
) -> Float[Array, "P H d"]:
    """Reads rows of q, k and v as the projections leave them: no head is moved, and no score leaves the chip.

    A step of the grid has the heads that fill whole registers (two of 64, or all sixteen of 72) for a block of queries
    and all keys, which stay on the chip for the blocks after it. Blocks are whole sides of the arrays where they do not
    divide them, so nothing is padded here: 729 patches and heads of 72 are laid out by the compiler.
    """
    from jax.experimental import pallas as pl  # half a second, for TPUs alone
    from jax.experimental.pallas import tpu as pltpu

    patches, heads, width = q.shape
    group = math.lcm(width, LANES) // width
    lanes = (heads if heads % group else group) * width
    blocks = -(-4 * patches**2 // 2**21)  # of at most 2 MB of scores
    queries = patches if blocks == 1 else -(-patches // (16 * blocks)) * 16  # rows come in sixteens in bfloat16

    def kernel(q_ref, k_ref, v_ref, *refs):
        out_ref, valid = refs[-1], None if mask is None else refs[0][0] != 0
        for start in range(0, lanes, width):
            head = pl.ds(start, width)
            out = _one_head(q_ref[:, head], k_ref[:, head], v_ref[:, head], mask=valid, precision=precision)
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
        cost_estimate=pl.CostEstimate(  # each of the four arrays crosses the chip's border once
            flops=4 * patches**2 * heads * width,
            bytes_accessed=4 * q.size * itemsize,
            transcendentals=patches**2 * heads,
        ),
        # Two of each block, as one is fetched while the other is worked on, copies of the scores, and room for what
        # the compiler keeps beside them: 28 MB in all for 16 heads of 72, of 64 to 128 MB that the chips have.
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=4 * (queries + patches) * lanes * itemsize + 8 * queries * patches * 4 + 2**24
        ),
    )
    return call(*arrays, *([] if mask is None else [mask[None].astype(jnp.int32)])).reshape(q.shape)


def _pallas_tpu_forward(q, k, v, mask, precision):
    return _pallas_tpu(q, k, v, mask, precision), (q, k, v, mask)


def _pallas_tpu_backward(precision, saved, gradient):
    *qkv, mask = saved
    _, vjp = jax.vjp(lambda q, k, v: _plain(q, k, v, mask, precision), *qkv)
    return *vjp(gradient), None


_pallas_tpu.defvjp(_pallas_tpu_forward, _pallas_tpu_backward)
