"""LoRA: a low-rank correction of named kernels, held beside the params and merged into them.

`params["lora"]` mirrors the paths of the corrected kernels, with the factors `a` (..., in, r) and `b` (..., r, out).
The train step merges before every forward pass, so the tower has no code for it, and `export_hf` merges likewise.
"""

import re

import jax
import jax.numpy as jnp

from multipatch_jax.params.tree import Params, flatten, unflatten


def add_lora(rng: jax.Array, params: Params, *, kernels: str = "(q_proj|v_proj)/kernel$", rank: int = 8) -> Params:
    """The params with LoRA factors beside them that change nothing yet; train them with `trainable="lora"`.

    After Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": `a` is random, `b` zero. The product is
    not scaled (their alpha is the rank), as the learning rate does the same.

    Args:
      kernels: a regex; every kernel in whose path it is found is corrected. Kernels are (in, out), with layers in front
        where they are stacked; the patch embedding's, a convolution's, is not one of them.
      rank: r, at most the smaller side of each kernel.

    Raises:
      ValueError: the regex is found in no kernel's path, the rank does not suit a kernel, or there are factors already.
    """
    if "lora" in params:
        raise ValueError("These params hold LoRA factors that are not merged yet: call merge_lora(params) first.")
    flat = {path: x for path, x in flatten(params).items() if path.endswith("/kernel") and x.ndim in (2, 3)}
    chosen = {path: x for path, x in flat.items() if re.search(kernels, path)}
    if not chosen:
        raise ValueError(f"kernels={kernels!r} is found in no kernel's path; there are {', '.join(sorted(flat))}.")
    factors = {}
    for key, (path, kernel) in zip(jax.random.split(rng, len(chosen)), sorted(chosen.items()), strict=True):
        *stack, rows, columns = kernel.shape
        if not 1 <= rank <= min(rows, columns):
            raise ValueError(f"rank must be 1 to {min(rows, columns)} for {path} {kernel.shape}, got {rank}.")
        factors[f"{path}/a"] = jax.random.normal(key, (*stack, rows, rank)) * rows**-0.5
        factors[f"{path}/b"] = jnp.zeros((*stack, rank, columns))
    return params | {"lora": unflatten(factors)}


def merge_lora(params: Params) -> Params:
    """Plain params, kernel + a b in the kernel's own dtype: to encode with, to export, or to go on training.

    In bfloat16, of the kernel or of the computation, a correction under 1/512 of a weight is mostly rounded away.

    Params without LoRA come back as they are.
    """
    if "lora" not in params:
        return params
    flat = flatten({key: value for key, value in params.items() if key != "lora"})
    factors = flatten(params["lora"])
    for path in sorted({name.rpartition("/")[0] for name in factors}):
        change = jnp.matmul(factors[f"{path}/a"], factors[f"{path}/b"], precision="highest")
        flat[path] = (flat[path] + change).astype(flat[path].dtype)
    return unflatten(flat)
