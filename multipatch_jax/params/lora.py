"""LoRA: a low-rank correction of chosen kernels, kept beside the params in a tree of its own and merged into them.

`params["lora"]` has the path of each corrected kernel, and under it two factors: `a` (..., in, rank) and `b`
(..., rank, out). The train step merges them into the kernels before every forward pass, so tower, connector and decoder
need no code for LoRA. `export_hf` merges them too.
"""

from typing import Any

import jax
import jax.numpy as jnp

from multipatch_jax.arguments import require_key, require_pattern, require_positive, require_tree
from multipatch_jax.params.tree import Params, flatten, unflatten


def add_lora(rng: jax.Array, params: Params, *, kernels: str = "(q_proj|v_proj)/kernel$", rank: int = 8) -> Params:
    """Return the params with new LoRA factors added, which change no result yet.

    Train them with `trainable="lora"`. The method is that of Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large
    Language Models": `a` starts random (normal, standard deviation 1 / sqrt(in)) and `b` zero, both in float32. The
    product a b is not scaled (the paper's alpha equals the rank), because the learning rate has the same effect.

    Args:
      kernels: a regex that is searched in the paths of kernels, to choose those to correct: "^(text_model|connector)/"
        for all of decoder and connector. The default takes those of the tower and, if it is there, of the decoder,
        which have the same names. Their shape is (in, out), or (layers, in, out) where layers are stacked. The patch
        embedding has a kernel of another shape, so it is never chosen.
      rank: at least 1, and at most the smaller of in and out of every chosen kernel.

    Raises:
      ValueError: the regex is found in no kernel's path, the rank does not suit a kernel, or `params` have factors
        already.
    """
    require_key("rng", rng)
    require_tree("params", params)
    pattern, rank = require_pattern("kernels", kernels), require_positive("rank", rank)
    if "lora" in params:
        raise ValueError("These params hold LoRA factors that are not merged yet: call merge_lora(params) first.")
    flat = {path: x for path, x in flatten(params).items() if path.endswith("/kernel") and x.ndim in (2, 3)}
    chosen = {path: x for path, x in flat.items() if pattern.search(path)}
    if not chosen:
        raise ValueError(f"kernels={kernels!r} is found in no kernel's path; there are {', '.join(sorted(flat))}.")
    factors = {}
    for key, (path, kernel) in zip(jax.random.split(rng, len(chosen)), sorted(chosen.items()), strict=True):
        *stack, rows, columns = kernel.shape
        if rank > min(rows, columns):
            raise ValueError(f"rank must be 1 to {min(rows, columns)} for {path} {kernel.shape}, got {rank}.")
        factors[f"{path}/a"] = jax.random.normal(key, (*stack, rows, rank), jnp.float32) * rows**-0.5
        factors[f"{path}/b"] = jnp.zeros((*stack, rank, columns), jnp.float32)
    return {**params, "lora": unflatten(factors)}


def merge_lora(params: Params) -> Params:
    """Return plain params without factors: every corrected kernel becomes kernel + a b, in its own dtype.

    Use them to encode, to export, or to train on. Params without LoRA factors are returned unchanged.

    If the kernel or the computation is in bfloat16, a correction below 1/512 of a weight is mostly lost in rounding.

    Raises:
      ValueError: the factors are not those of kernels of these params.
    """
    require_tree("params", params)
    if "lora" not in params:
        return params
    require_tree('params["lora"]', params["lora"])
    flat = flatten({key: value for key, value in params.items() if key != "lora"})
    factors = flatten(params["lora"])
    for path in sorted({name.rpartition("/")[0] for name in factors}):
        found: list[Any] = [flat.get(path), factors.get(f"{path}/a"), factors.get(f"{path}/b")]
        kernel, a, b = found
        if not _fit(kernel, a, b):
            raise ValueError(
                f'params["lora"] must hold factors a and b of kernels of these params, as add_lora makes them, got '
                f"{path!r}."
            )
        flat[path] = (kernel + jnp.matmul(a, b, precision="highest")).astype(kernel.dtype)
    return unflatten(flat)


def _fit(kernel: Any, a: Any, b: Any) -> bool:
    """Return whether there are arrays of shapes (..., in, out), (..., in, rank) and (..., rank, out)."""
    shapes: list[tuple[int, ...]] = [getattr(x, "shape", ()) for x in (kernel, a, b)]
    if len(set(map(len, shapes))) != 1 or len(shapes[0]) < 2:
        return False
    (*stack, rows, columns), rank = shapes[0], shapes[1][-1]
    return shapes[1] == (*stack, rows, rank) and shapes[2] == (*stack, rank, columns)
