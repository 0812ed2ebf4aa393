"""The params tree: names and shapes, checks, choosing what is trained, LoRA, and sharding over a mesh."""

from multipatch_jax.params.check import check_params, mismatch_report
from multipatch_jax.params.init import init_params
from multipatch_jax.params.lora import add_lora, merge_lora
from multipatch_jax.params.sharding import (
    BATCH,
    RULES,
    Rules,
    batch_parts,
    bytes_per_device,
    check_mesh,
    gather_fsdp,
    local_rows,
    make_mesh,
    shard,
    shard_batch,
    shardings,
)
from multipatch_jax.params.subset import kernel_mask, merge_params, split_params
from multipatch_jax.params.table import (
    PARTS,
    Tensor,
    check_part_names,
    check_parts,
    count_tensors,
    from_params,
    param_shapes,
    tensors,
    to_params,
)
from multipatch_jax.params.tree import Params, count_parameters, flatten, unflatten

__all__ = [
    "BATCH",
    "PARTS",
    "RULES",
    "Params",
    "Rules",
    "Tensor",
    "add_lora",
    "batch_parts",
    "bytes_per_device",
    "check_mesh",
    "check_params",
    "check_part_names",
    "check_parts",
    "count_parameters",
    "count_tensors",
    "flatten",
    "from_params",
    "gather_fsdp",
    "init_params",
    "kernel_mask",
    "local_rows",
    "make_mesh",
    "merge_lora",
    "merge_params",
    "mismatch_report",
    "param_shapes",
    "shard",
    "shard_batch",
    "shardings",
    "split_params",
    "tensors",
    "to_params",
    "unflatten",
]
