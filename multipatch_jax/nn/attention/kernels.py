"""The attention kernels by name, and the choice of the one that a program runs."""

import jax
from jax.extend.backend import get_backend
from jaxtyping import Array, Bool, Float

from multipatch_jax.nn import native
from multipatch_jax.nn.attention.blocked import blocked
from multipatch_jax.nn.attention.cudnn import cudnn
from multipatch_jax.nn.attention.pallas_tpu import pallas_tpu
from multipatch_jax.nn.attention.plain import plain

KERNELS = {
    "plain": plain,
    "blocked": blocked,
    "native": blocked,  # our compiled encoder replaces all layers; masked inputs and gradients take this kernel
    "pallas_tpu": pallas_tpu,
    "cudnn": cudnn,
}


def choose_kernel(attention: str, dtype: str | None, platform: str | None = None) -> str:
    """Return the name of the kernel to run: `attention` itself, or the one that "auto" stands for.

    The kernel is part of the program, so call this before tracing.

    | platform | dtype | "auto" is |
    |---|---|---|
    | CPU of this machine | float32 | "native", if `native.best_build()` finds a build |
    | CPU, otherwise | any | "blocked" |
    | TPU | any | "pallas_tpu" |
    | CUDA, Ampere or later | bfloat16, float16 | "cudnn" |
    | all others | any | "plain" |

    Args:
      attention: `config.attention`.
      dtype: of the computation, by name.
      platform: the platform that an exported program is for ("cpu", "tpu", "cuda" or "rocm"), whatever machine exports
        it. It excludes "native", because an exported program cannot contain our compiled code. None is this machine.

    Raises:
      ValueError: "native" with another dtype than float32, with a `platform`, or where `native.best_build()` finds no
        build.
    """
    if attention == "native" and (dtype != "float32" or platform is not None or not native.best_build()):
        raise ValueError(
            'attention="native" is for float32 on a CPU, in a program for this machine, where the compiled encoder was '
            f"built (pip install it again, with a C++ compiler); got {dtype}, {platform or 'this machine'} and the "
            f'builds {native.builds()}. Use "auto".'
        )
    if attention != "auto":
        return attention
    if platform is None:
        if dtype == "float32" and jax.default_backend() == "cpu" and native.best_build():
            return "native"
        platform = jax.default_backend()
        if platform == "gpu" and "cuda" in get_backend().platform_version:
            # cuDNN's kernel needs an Ampere GPU or a later one.
            platform = "cuda" if float(jax.local_devices()[0].compute_capability) >= 8 else "gpu"
    if platform == "cuda":
        return "cudnn" if dtype in ("bfloat16", "float16") else "plain"
    return {"cpu": "blocked", "tpu": "pallas_tpu"}.get(platform, "plain")


def attention(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    *,
    mask: Bool[Array, " P"] | None = None,
    kernel: str = "plain",
    precision: str | None = None,
) -> Float[Array, "P h d"]:
    """Return softmax(q k^T / sqrt(d)) v over the P patches of one tile, for h heads of width d.

    The softmax is always float32. The scale is applied to the float32 scores. Scaling q instead would round q once
    more in bfloat16 wherever d is not a power of four (So400m: 72).

    Args:
      q, k, v: arrays of one dtype, which the result has too.
      mask: True for the patches that may be attended to. Masked keys get no weight. Masked queries are computed all
        the same, as in the reference.
      kernel: one of `KERNELS`; each is described in its own file.
      precision: of the two matmuls, for float32 inputs.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}.")
    return KERNELS[kernel](q, k, v, mask, precision)
