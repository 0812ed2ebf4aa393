"""What a call decides before tracing, once: its settings, its params, its tiles in flight and its mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from multipatch_jax.arguments import require_positive_or_none, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import default_resize_form
from multipatch_jax.nn import Compute, Target, resolve_compute, this_machine
from multipatch_jax.params import Params, check_params

_ROOTS = {"vision": "vision_model", "connector": "connector"}  # part: its place in params


@dataclasses.dataclass(frozen=True)
class Execution:
    """What decides a program, beside the shapes of its arguments: the static argument of every encoding program.

    Attributes:
      config: what the model is.
      compute: how it is computed, with nothing left automatic.
      batch_size: most tiles in flight on a device.
      mesh: the mesh whose devices share the tiles; None for a single device.
      resize_form: form of the device's resize, "gather" or "banded".
    """

    config: ModelConfig
    compute: Compute
    batch_size: int
    mesh: Mesh | None
    resize_form: str


def prepare_execution(
    params: Params,
    config: ModelConfig,
    compute: Compute = Compute(),
    batch_size: int | None = None,
    *,
    parts: tuple[str, ...] = ("vision", "connector"),
    platform: str | None = None,
) -> tuple[Params, Execution]:
    """Check a call's arguments and decide all that is automatic in them.

    Args:
      params: with all of `parts`. Arrays, or `jax.ShapeDtypeStruct`s to lower a program with.
      config: the model's.
      compute: how to compute.
      batch_size: most tiles in flight on a device; None chooses by platform (`tiles_in_flight`).
      parts: which parts of the params the program reads.
      platform: the platform that the program is exported for; None is this machine.

    Returns:
      (params, execution). The params are those of `parts` alone, so that a language model beside them stays out of the
      program; if they lie on a mesh, its axes are Auto ones.

    Raises:
      ValueError: names or shapes of `params` are not the config's, a setting cannot be had, `batch_size` is not a
        positive integer, or the params lie on devices of several hosts.
    """
    require_type("config", config, ModelConfig)
    check_params(params, config, parts)
    target = this_machine() if platform is None else Target(platform, exported=True)
    compute = resolve_compute(compute, dtype_of(params), target)
    in_flight = tiles_in_flight(batch_size, target.platform)
    params = _with_automatic_axes({_ROOTS[part]: params[_ROOTS[part]] for part in parts})
    form = default_resize_form(target.platform)
    return params, Execution(config, compute, in_flight, mesh_of(params), form)


def dtype_of(params: Params) -> str:
    """Return the dtype that decides that of the computation: the patch embedding's, by name."""
    return params["vision_model"]["embeddings"]["patch_embedding"]["kernel"].dtype.name


def tiles_in_flight(batch_size: int | None, platform: str | None = None) -> int:
    """Return how many tiles one device encodes at a time, which is one step of the map over tiles.

    On a CPU, more than one tile only enlarges the working set. With the shipped settings an image has at most 17 tiles,
    so a GPU encodes all of an image at once.

    Args:
      batch_size: the caller's choice. None is 1 on a CPU, 8 on a TPU and 17 on a GPU.
      platform: the platform that None is decided for; None is the default backend.

    Raises:
      ValueError: `batch_size` is not a positive integer.
    """
    automatic = {"cpu": 1, "tpu": 8}.get(platform or jax.default_backend(), 17)
    return require_positive_or_none("batch_size", batch_size, "tiles") or automatic


def mesh_of(params: Params) -> Mesh | None:
    """Return the mesh that the params are laid out on, or None if there is no mesh of several devices.

    An encoding call splits its tiles over all devices of this mesh. Only the first array of `params` is inspected. The
    result is None for a NumPy array, a traced array, an array without a `NamedSharding` and a mesh of one device.

    Raises:
      ValueError: the mesh has devices of other hosts, to which this process cannot send tiles.
    """
    sharding = None
    if isinstance(leaf := jax.tree.leaves(params)[0], jax.Array) and not isinstance(leaf, Tracer):
        sharding = leaf.sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return None
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "Every host encodes images of its own, so the mesh of the params must consist of jax.local_devices(), got "
            f"{mesh.size} devices of several hosts."
        )
    return mesh


def _with_automatic_axes(params: Params) -> Params:
    """Return the params on a mesh of Auto axes, if they are on one with Explicit axes.

    `jax.make_mesh` makes Explicit axes by default, on which every step of a program must say how its result is laid
    out. `Mesh` makes Auto axes by default, on which XLA decides that.
    """
    mesh = mesh_of(params)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return params
    automatic = Mesh(mesh.devices, mesh.axis_names)
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(automatic, x.sharding.spec)), params)


def on_each_device(function: Callable[..., Any], mesh: Mesh | None, *sharded: bool) -> Callable[..., Any]:
    """Wrap `function` in a `shard_map` over all axes of the mesh, so that every device runs it on its own share.

    The wrapper adds no communication between devices. Without a mesh it is `function` itself.

    Args:
      function: takes and returns pytrees of arrays. Its results are joined along their first axis.
      mesh: None for a single device.
      sharded: one bool for each argument of `function`. True splits the argument's first axis over the devices; False
        gives every device all of it.
    """
    if mesh is None:
        return function
    share = PartitionSpec(mesh.axis_names)
    specs = tuple(share if of_tiles else PartitionSpec() for of_tiles in sharded)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False)
