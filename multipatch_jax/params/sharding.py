"""Params and batches over many chips: a mesh of three axes, and a table of regexes that says how each array is split.

Physical axes: `data` (copies of the model, other images), `fsdp` (other images too, params and optimiser state split)
and `tensor` (the same images, heads and hidden units split). A batch is split over data x fsdp. XLA derives the
collectives from where arrays lie.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
Rules = Sequence[tuple[str, PartitionSpec]]
_MATRICES = ("kernel", "embedding")
# The first regex found in an array's path decides; an array that none is found in is on every device. Optimiser state
# has the params' paths in its own. Layers are stacked in front, so kernels are (layer, in, out). After the usual
# division: the first matmul of a pair splits its outputs over `tensor`, the second its inputs, and one sum joins them.
RULES: Rules = (
    (r"(q_proj|k_proj|v_proj|fc1)/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"(q_proj|k_proj|v_proj|fc1)/bias", PartitionSpec(None, "tensor")),
    (r"(out_proj|fc2)/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"patch_embedding/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"position_embedding/embedding", PartitionSpec(None, "fsdp")),
    (r"modality_projection/proj/kernel", PartitionSpec("fsdp", "tensor")),
    (r"embed_tokens/embedding", PartitionSpec("tensor", "fsdp")),
)


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`, over all devices of all hosts.

    Args:
      data, fsdp, tensor: sides of the mesh; their product is the number of devices.
      devices: None is all of them (with `jax.distributed`, those of every host).

    Raises:
      ValueError: there are not as many devices.
    """
    devices = jax.devices() if devices is None else devices
    if data * fsdp * tensor != len(devices) or min(data, fsdp, tensor) < 1:
        raise ValueError(
            f"A mesh of data={data}, fsdp={fsdp}, tensor={tensor} needs {data * fsdp * tensor} devices, got "
            f"{len(devices)}; choose other sides, or pass devices=."
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, (AxisType.Auto,) * 3, devices=devices)


def check_mesh(mesh: Mesh | None) -> None:
    """Raises a ValueError for a mesh of other axes, or of Explicit ones (`jax.make_mesh`'s default)."""
    if mesh is not None and (mesh.axis_names != AXES or set(mesh.axis_types) != {AxisType.Auto}):
        types = [str(kind) for kind in mesh.axis_types]
        raise ValueError(f"The mesh must be one of make_mesh, with Auto axes {AXES}, got {mesh.axis_names}, {types}.")


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES) -> PartitionSpec:
    """How an array is split: by the first rule found in its path, less the sides that do not divide over the mesh."""
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), PartitionSpec())
    if len(spec) > len(shape):  # of another rank than the param, as an optimiser's factored moments
        return PartitionSpec()

    def divides(size: int, names: Any) -> bool:
        names = (names,) if isinstance(names, str) else names
        return names is not None and size % int(np.prod([mesh.shape[name] for name in names])) == 0

    return PartitionSpec(*(names if divides(size, names) else None for size, names in zip(shape, spec, strict=False)))


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The `NamedSharding` of every array (or shape) in a tree of params or optimiser state.

    A side that does not divide over its mesh axes is not split; `bytes_per_device` shows what was.

    Args:
      rules: (regex, PartitionSpec) pairs, the first found in an array's path decides: `((".*", P("fsdp")), ...)`.
    """

    def sharding(keys, x):
        return NamedSharding(mesh, spec_for(_path(keys), x.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def gather_fsdp(params: dict[str, Any], mesh: Mesh, rules: Rules = RULES, dtype: Any = None) -> dict[str, Any]:
    """Inside a program: the params with `fsdp` undone, for the forward pass; its transpose splits their gradients.

    Left to itself the compiler keeps kernels split and sums activations over the chips instead, layer after layer: a
    hundred times the bytes (benchmarks/train_tpu.py). Towers are small beside their activations, so all layers are
    gathered at once, and once a pass though layers are made again.

    Args:
      dtype: of the computation; the tower's and connector's kernels and embeddings, which it is used for anyway,
        travel in it, and so do the gradients that come back.
    """

    def one(keys, x):
        path = _path(keys)
        if dtype is not None and path.startswith(("vision_model/", "connector/")) and path.endswith(_MATRICES):
            x = x.astype(dtype)
        spec = PartitionSpec(*(None if side == "fsdp" else side for side in spec_for(path, x.shape, mesh, rules)))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(one, params)


def shard(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The tree with its arrays laid out over the mesh; on several hosts each passes the same values."""
    return jax.device_put(tree, shardings(tree, mesh, rules))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch laid out over data x fsdp by its first axis.

    Args:
      batch: a tree of arrays. On several hosts each passes the rows that it has loaded, `local_rows` of the whole;
        arrays that are spread over a mesh already stay as they are.

    Raises:
      ValueError: the rows do not divide over the mesh.
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
    """How many devices share a batch out among them: data x fsdp."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this host loads: equal pieces, in the order of the hosts.

    Raises:
      ValueError: the batch does not divide over the hosts.
    """
    hosts = jax.process_count()
    if batch_size % hosts:
        raise ValueError(f"A batch must divide over the {hosts} hosts, got batch_size={batch_size}.")
    start = jax.process_index() * (batch_size // hosts)
    return slice(start, start + batch_size // hosts)


def bytes_per_device(tree: Any) -> dict[Any, int]:
    """Bytes of a tree of `jax.Array`s that lie on each device of this host."""
    total: dict[Any, int] = {}
    for array in jax.tree.leaves(tree):
        for piece in array.addressable_shards:
            total[piece.device] = total.get(piece.device, 0) + piece.data.nbytes
    return total
