"""The attention kernels: a row of `KERNELS` for each, and the function that calls one by name."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool, Float

from multipatch_jax.nn.attention.blocked import blocked
from multipatch_jax.nn.attention.cudnn import cudnn
from multipatch_jax.nn.attention.pallas_tpu import pallas_tpu
from multipatch_jax.nn.attention.plain import plain
from multipatch_jax.nn.platforms import Choice, Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel(Choice):
    """What a program must know of an attention kernel.

    Attributes:
      function: (q, k, v, mask, precision) -> the result, as `attention` describes them.
      takes_mask: whether it takes a mask; where it does not, `plain` stands in for masked tiles.
      splits_heads: whether XLA can split it by heads over a mesh.
      fuses_products: whether cuBLAS computes the products beside it, each with its bias, GELU or residual in one call
        (`Dense.product_in_dtype`).
      compiler_options: XLA's options for a program with this kernel, as (name, value), where `rows_suit_cublas`.
      unstable_calls: custom calls of an exported program that only the jax that exported it can be relied on to run.
    """

    function: Callable[..., Any]
    takes_mask: bool = True
    splits_heads: bool = False
    fuses_products: bool = False
    compiler_options: tuple[tuple[str, str | bool], ...] = ()
    unstable_calls: tuple[str, ...] = ()


def rows_suit_cublas(patches: int) -> bool:
    """Return whether XLA can pass the products over a tile's patches to cuBLAS without padding them.

    It pads and cuts every product whose number of rows is no multiple of 8. 17 tiles of 729 patches took 30.8 ms on an
    H100 with the `compiler_options` of "cudnn", and 28.0 ms without.
    """
    return patches % 8 == 0


def _cuda_wheels(target: Target) -> bool:
    return not target.exported or any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


KERNELS = {
    "cudnn": Kernel(
        function=cudnn,
        platforms=("cuda",),
        dtypes=("bfloat16", "float16"),
        takes_mask=False,
        fuses_products=True,
        # XLA's Triton products are slower than cuBLAS's, and take in no bias and GELU. And XLA would merge the products
        # of q, k and v into one, whose result it then copies three times.
        compiler_options=(("xla_gpu_enable_triton_gemm", False), ("xla_gpu_dot_merger_threshold_mb", "0")),
        is_available=_cuda_wheels,
        needs="an NVIDIA GPU of compute capability 8.0 (Ampere) or later, and to be exported the CUDA wheels "
        '(pip install "multipatch_jax[cuda12]")',
        unstable_calls=("__cudnn$fmhaSoftmax",),
    ),
    "pallas_tpu": Kernel(function=pallas_tpu, platforms=("tpu",)),
    "blocked": Kernel(function=blocked, automatic=("cpu",)),
    "plain": Kernel(function=plain, splits_heads=True),
}
"""The attention kernels by name. "auto" takes the first that can be had and is automatic on the platform."""


def attention(
    q: Float[Array, "P h d"],
    k: Float[Array, "P h d"],
    v: Float[Array, "P h d"],
    *,
    mask: Bool[Array, " P"] | None = None,
    kernel: str = "plain",
    precision: str | None = None,
) -> Float[Array, "P h d"]:
    """softmax(q k^T / sqrt(d)) v over the P patches of one tile, for h heads of width d.

    The softmax is always float32. The scale is applied to its float32 scores: scaling q instead would round q once
    more in bfloat16 wherever d is not a power of four (So400m: 72).

    Args:
      q, k, v: of one dtype, which is also the result's.
      mask: True for the patches that may be attended to. Masked keys get no weight. Masked queries are computed all
        the same, as in the reference.
      kernel: a name in `KERNELS`; each kernel is described in its own file.
      precision: of the two matmuls, for float32 inputs.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}.")
    row = KERNELS[kernel]
    function = row.function if mask is None or row.takes_mask else plain
    return function(q, k, v, mask, precision)
