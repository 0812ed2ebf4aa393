"""What an encoding call decides before tracing: its config, its tiles in flight, its mesh and its params."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from multipatch_jax.arguments import require_positive
from multipatch_jax.config import ModelConfig
from multipatch_jax.nn import choose_kernel
from multipatch_jax.params import Params, check_params


def resolve_config(
    config: ModelConfig, params: Params, parts: tuple[str, ...] = ("vision", "connector")
) -> ModelConfig:
    """Check `params` against `config`, and return the config with every open choice made.

    | field | becomes |
    |---|---|
    | `dtype` None | the dtype of the params |
    | `attention` "auto" | the name of a kernel (`nn.choose_kernel`) |
    | `precision` | unchanged for float32; "default" for 16-bit dtypes, which have no other |

    Args:
      config: the model's.
      params: with all of `parts`.
      parts: names out of `params.PARTS`; only these are checked.

    Raises:
      ValueError: names or shapes of `params` are not the config's, or `config.attention` is "native" and cannot run
        here.
    """
    check_params(params, config, parts)
    dtype = config.dtype or params["vision_model"]["embeddings"]["patch_embedding"]["kernel"].dtype.name
    return dataclasses.replace(
        config,
        dtype=dtype,
        attention=choose_kernel(config.attention, dtype),
        precision=config.precision if dtype == "float32" else "default",
    )


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
    if batch_size is None:
        return {"cpu": 1, "tpu": 8}.get(platform or jax.default_backend(), 17)
    return require_positive("batch_size", batch_size, "tiles", or_none=True)


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


def model_params(params: Params) -> Params:
    """Return the params of the vision tower and the connector alone, on a mesh without Explicit axes.

    A language model in the same `params` thereby stays out of the program.
    """
    params = {"vision_model": params["vision_model"], "connector": params["connector"]}
    mesh = mesh_of(params)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return params
    # `jax.make_mesh` makes Explicit axes by default, on which every step of a program must say how its result is laid
    # out. `Mesh` makes Auto axes by default, on which XLA decides that.
    automatic = Mesh(mesh.devices, mesh.axis_names)
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(automatic, x.sharding.spec)), params)
