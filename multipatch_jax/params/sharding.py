"""Params and batches over many chips: a mesh of three axes, and a table of regexes that says how each array is split.

| mesh axis | images | params and optimiser state |
|---|---|---|
| `data` | split | copied |
| `fsdp` | split | split; gathered for the forward pass (`gather_fsdp`) |
| `tensor` | copied | split, by attention heads and hidden units for example |

So a batch is split over data x fsdp. XLA derives the collectives from the shardings of the arrays.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from multipatch_jax.params.tree import Params

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
"""How a batch is split: its first axis over `data` and `fsdp`."""
Rules = Sequence[tuple[str, PartitionSpec]]
"""Pairs of a regex and how to split an array. The first regex that is found in the array's path decides."""
_MATRICES = ("kernel", "embedding")
_PARTS = ("vision_model/", "connector/", "text_model/", "lm_head/")  # whose modules cast their matrices
# The first regex that is found in an array's path decides; an array that no regex matches is copied to every device.
# The paths of optimiser state contain those of the params. Kernels of layers are stacked: (layer, in, out).
# `tensor` divides as Megatron-LM does: of two matmuls in a row, the first is split by its outputs and the second by its
# inputs, so that one all-reduce after the second is enough.
RULES: Rules = (
    (r"(q_proj|k_proj|v_proj|fc1|gate_proj|up_proj)/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"(q_proj|k_proj|v_proj|fc1)/bias", PartitionSpec(None, "tensor")),
    (r"(out_proj|fc2|o_proj|down_proj)/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"patch_embedding/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"position_embedding/embedding", PartitionSpec(None, "fsdp")),
    (r"modality_projection/proj/kernel", PartitionSpec("fsdp", "tensor")),
    (r"embed_tokens/embedding", PartitionSpec("tensor", "fsdp")),  # by ids, as the logits are
    (r"lm_head/kernel", PartitionSpec("fsdp", "tensor")),
    (r"(^|/)linear/kernel", PartitionSpec("fsdp")),  # a retriever's head
)
"""How `shard` and training split params by default: as Megatron-LM does over `tensor`, and over `fsdp` beside that."""


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
      data, fsdp, tensor: sizes of the axes; their product must be the number of devices.
      devices: the devices to use. None uses all of them; with `jax.distributed`, those of every host.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or a size is below 1.
    """
    devices = jax.devices() if devices is None else devices
    if data * fsdp * tensor != len(devices) or min(data, fsdp, tensor) < 1:
        raise ValueError(
            f"A mesh of data={data}, fsdp={fsdp}, tensor={tensor} needs {data * fsdp * tensor} devices, got "
            f"{len(devices)}; choose other sides, or pass devices=."
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, (AxisType.Auto,) * 3, devices=devices)


def check_mesh(mesh: Mesh | None) -> None:
    """Check that a mesh has the axes that `make_mesh` gives it; None passes.

    Raises:
      ValueError: the axes have other names, or are not of type Auto (those of `jax.make_mesh` are Explicit by default).
    """
    if mesh is not None and (mesh.axis_names != AXES or set(mesh.axis_types) != {AxisType.Auto}):
        types = [str(kind) for kind in mesh.axis_types]
        raise ValueError(f"The mesh must be one of make_mesh, with Auto axes {AXES}, got {mesh.axis_names}, {types}.")


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES) -> PartitionSpec:
    """Return how an array is split. The first rule whose regex is found in the array's path decides.

    An axis is left whole if its mesh axes do not divide its size. The array is left whole if no rule matches, or if it
    has fewer axes than its rule has entries.
    """
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), PartitionSpec())
    if len(spec) > len(shape):  # e.g. an optimiser's factored moments, which have fewer axes than their param
        return PartitionSpec()

    def divides(size: int, names: Any) -> bool:
        names = (names,) if isinstance(names, str) else names
        return names is not None and size % int(np.prod([mesh.shape[name] for name in names])) == 0

    return PartitionSpec(*(names if divides(size, names) else None for size, names in zip(shape, spec, strict=False)))


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Return the `NamedSharding` of every array (or `jax.ShapeDtypeStruct`) in a tree of params or optimiser state.

    An axis is left whole if its mesh axes do not divide its size. Once the arrays lie on the mesh, `bytes_per_device`
    shows how much of them each device holds.

    Args:
      rules: (regex, PartitionSpec) pairs, such as `((".*", PartitionSpec("fsdp")), ...)`. The first pair whose regex is
        found in an array's path decides.
    """

    def sharding(keys, x):
        return NamedSharding(mesh, spec_for(_path(keys), x.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def gather_fsdp(params: Params, mesh: Mesh, rules: Rules = RULES, dtype: Any = None) -> Params:
    """Gather params over `fsdp` for the forward pass; in the backward pass it splits their gradients over `fsdp`.

    Call it inside a jitted program. Without it, XLA keeps the kernels split and sums activations over the chips in
    every layer instead, which sends about a hundred times the bytes (benchmarks/train_tpu.py). All layers are gathered
    at once, because a tower's params are small beside its activations. They are gathered only once, even if the
    backward pass computes layers again (remat).

    Args:
      dtype: the dtype of the computation. Kernels and embeddings of tower, connector and decoder are cast to it before
        they are sent (the modules would cast them anyway), and their gradients come back in it. All other params keep
        their dtype. None keeps every dtype.
    """

    def one(keys, x):
        path = _path(keys)
        if dtype is not None and path.startswith(_PARTS) and path.endswith(_MATRICES):
            x = x.astype(dtype)
        spec = PartitionSpec(*(None if side == "fsdp" else side for side in spec_for(path, x.shape, mesh, rules)))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(one, params)


def shard(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Lay the arrays of a tree out over the mesh. With several hosts, each must pass the same values."""
    return jax.device_put(tree, shardings(tree, mesh, rules))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Split the arrays of a batch over data x fsdp, by their first axis.

    Args:
      batch: a tree of arrays. With several hosts, each passes only the rows that it has loaded, which are `local_rows`
        of the whole batch. Tracers, and arrays that have a `NamedSharding` already, are returned unchanged.

    Raises:
      ValueError: an array has no axes, or its rows do not divide over the mesh.
    """
    parts = batch_parts(mesh)
    hosts = len({device.process_index for device in mesh.devices.flat})

    def place(x):
        if isinstance(x, Tracer) or (isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding)):
            return x
        x = np.asarray(x)
        if x.ndim == 0 or x.shape[0] * hosts % parts:
            raise ValueError(
                f"A batch is split over the {parts} devices of data x fsdp, so its first axis must be a multiple of "
                f"{-(-parts // hosts)} on this host, got an array of shape {x.shape}."
            )
        return jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), x)

    return jax.tree.map(place, batch)


def batch_parts(mesh: Mesh | None) -> int:
    """Return the number of pieces that a batch is split into: data x fsdp, or 1 without a mesh."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(batch_size: int) -> slice:
    """Return the rows of a global batch that this host loads: equal consecutive pieces, in the order of the hosts.

    Raises:
      ValueError: the number of hosts does not divide `batch_size`.
    """
    hosts = jax.process_count()
    if batch_size % hosts:
        raise ValueError(f"A batch must divide over the {hosts} hosts, got batch_size={batch_size}.")
    start = jax.process_index() * (batch_size // hosts)
    return slice(start, start + batch_size // hosts)


def bytes_per_device(tree: Any) -> dict[Any, int]:
    """Return device -> bytes that the `jax.Array`s of a tree take on it, for the devices of this host."""
    total: dict[Any, int] = {}
    for array in jax.tree.leaves(tree):
        for piece in array.addressable_shards:
            total[piece.device] = total.get(piece.device, 0) + piece.data.nbytes
    return total
