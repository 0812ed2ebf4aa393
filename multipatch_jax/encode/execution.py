"""EXEC"""

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
    """The config with all that is left open decided, after a check that `params` are of this config."""
    check_params(params, config, parts)
    dtype = config.dtype or params["vision_model"]["embeddings"]["patch_embedding"]["kernel"].dtype.name
    return dataclasses.replace(
        config,
        dtype=dtype,
        attention=choose_kernel(config.attention, dtype),
        precision=config.precision if dtype == "float32" else "default",
    )


def tiles_in_flight(batch_size: int | None, platform: str | None = None) -> int:
    """Tiles per step of the map. More than one on a CPU only grows the working set; a GPU takes all of an image."""
    if batch_size is None:
        return {"cpu": 1, "tpu": 8}.get(platform or jax.default_backend(), 17)
    return require_positive("batch_size", batch_size, "tiles", or_none=True)


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that params are laid out on, if it has several devices: tiles are then shared out over all of them.

    Raises:
      ValueError: a mesh with devices of other hosts, which cannot be fed from here.
    """
    sharding = None
    if isinstance(leaf := jax.tree.leaves(params)[0], jax.Array) and not isinstance(leaf, Tracer):
        sharding = leaf.sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return None
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "Every host encodes images of its own, so the mesh of the params must be one of jax.local_devices(), got "
            f"{mesh.size} devices of several hosts."
        )
    return mesh


def on_each_device(function: Callable[..., Any], mesh: Mesh | None, *sharded: bool) -> Callable[..., Any]:
    """`function` run by every device of a mesh on its own share, with no word between them; itself without a mesh.

    Args:
      sharded: of each argument, whether it is shared out by its first axis (as results are) or everywhere the same.
    """
    if mesh is None:
        return function
    share = PartitionSpec(mesh.axis_names)
    specs = tuple(share if of_tiles else PartitionSpec() for of_tiles in sharded)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False)


def model_params(params: Params) -> Params:
    """What the tower and connector need; a language model carried beside them stays out of the program."""
    params = {"vision_model": params["vision_model"], "connector": params["connector"]}
    mesh = mesh_of(params)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return params
    # Of Explicit axes, `jax.make_mesh`'s default, every step of a program would have to say how its result is laid out.
    automatic = Mesh(mesh.devices, mesh.axis_names)
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(automatic, x.sharding.spec)), params)
