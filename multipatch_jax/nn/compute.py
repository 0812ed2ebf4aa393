"""How to compute, apart from what the model is: settings that no file keeps, and the one place that decides "auto"."""

import dataclasses

import jax
from flax import linen as nn

from multipatch_jax.arguments import require_choices
from multipatch_jax.config import BOOL, DTYPES
from multipatch_jax.nn.attention import KERNELS
from multipatch_jax.nn.encoders import ENCODERS, FLAX
from multipatch_jax.nn.platforms import Target, choose, this_machine


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to compute. Every setting is automatic by default, and none is ever saved with a model.

    Attributes:
      dtype: of the computation: "float32", "bfloat16" or "float16". None is the dtype of the params; where that differs
        among them, of the patch embedding's kernel.
      attention: a name in `nn.KERNELS`; "auto" takes the kernel that suits platform and dtype.
      encoder: what runs the layers of the tower, a name in `nn.ENCODERS`: "native" is our compiled code for CPUs in
        float32 and bfloat16, "flax" the modules as XLA compiles them. "auto" takes the compiled code where it runs, and
        "flax" if `attention` names a kernel. Beside "native", a kernel serves only masked tiles, gradients and inner
        features. A `Generator` whose encoder is "native" runs the decoder in compiled code too.
      precision: of float32 matmuls: "default", "high" or "highest". None is "highest", as exact as the reference.
        16-bit dtypes and compiled code have only one precision.
      remat: whether a backward pass computes the activations of each layer again, rather than keep those of all layers.
    """

    dtype: str | None = None
    attention: str = "auto"
    encoder: str = "auto"
    precision: str | None = None
    remat: bool = False

    def __post_init__(self):
        require_choices(
            self,
            dtype=(None, *DTYPES),
            attention=("auto", *KERNELS),
            encoder=("auto", *ENCODERS),
            precision=(None, "default", "high", "highest"),
            remat=BOOL,
        )


def resolve_compute(compute: Compute, params_dtype: str, target: Target | None = None) -> Compute:
    """Return the settings with everything decided that was automatic; settings that are decided stay as they are.

    Call it before tracing where you can, because the result is a static part of the program.

    Args:
      params_dtype: by name.
      target: what the program is compiled for; None is this machine.

    Raises:
      ValueError: a setting cannot be had there; the error names those that can. Or `compute` is no `Compute`.
    """
    if not isinstance(compute, Compute):
        raise ValueError(f"compute must be an mp.Compute, such as mp.Compute(dtype='bfloat16'), got {compute!r}.")
    target = target or this_machine()
    dtype = compute.dtype or params_dtype
    if dtype not in DTYPES:
        raise ValueError(f"Params must be in one of {', '.join(DTYPES)}, got {dtype}: name one as Compute.dtype.")
    encoder = compute.encoder
    if encoder == "auto" and compute.attention != "auto":
        encoder = FLAX  # or the kernel that was asked for would not be called
    return dataclasses.replace(
        compute,
        dtype=dtype,
        attention=choose("attention", compute.attention, KERNELS, dtype, target),
        encoder=choose("encoder", encoder, ENCODERS, dtype, target),
        precision=(compute.precision or "highest") if dtype == "float32" else "default",
    )


def compute_in(module: nn.Module, compute: Compute) -> Compute:
    """Return the settings for a module: decided ones unchecked, others decided for this machine and its params.

    `resolve_compute` has decided and checked the settings of an encoding call, perhaps for another platform. A module
    that is used by itself computes in the dtype of its own params (of the first of them), unless `compute` names one.
    """
    if compute.dtype and compute.precision and "auto" not in (compute.attention, compute.encoder):
        return compute
    leaves = jax.tree.leaves(module.variables.get("params", {}))
    return resolve_compute(compute, leaves[0].dtype.name if leaves else "float32")
