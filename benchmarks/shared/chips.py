"""Describes chips that this machine does not have, so that XLA compiles for them. Import this before JAX.

libtpu compiles for TPUs, and the CUDA wheels for an H100; both work on any Linux machine.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu's lock guards a chip, and there is none
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
if nvidia := importlib.util.find_spec("nvidia"):
    wheels = Path(next(iter(nvidia.submodule_search_locations or [""])))
    cuda = next((wheels / name for name in ("cu13", "cuda_nvcc") if (wheels / name).is_dir()), wheels)  # CUDA 13, 12
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={cuda}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import multipatch_jax as mp

# XLA asks a GPU for these; they are NVIDIA's figures for an H100 SXM.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_core_limit: 2048
  threads_per_block_limit: 1024 threads_per_warp: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip and its peak rates.

    Attributes:
      flops: bfloat16 operations a second. bandwidth: bytes a second from memory.
      needs: the package that compiles for this chip.
    """

    name: str
    flops: float
    bandwidth: float
    needs: str

    @property
    def platform(self) -> str:
        """As JAX names it: "tpu" or "cuda"."""
        return "tpu" if self.needs == "libtpu" else "cuda"

    def mesh(self, devices: int = 1) -> Mesh:
        """A mesh of the described devices; a TPU has four of them."""
        if self.platform == "tpu":
            topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{self.name}:2x2")
        else:
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name="h100", topology="1x1x1", target_config=_H100
            )
        return Mesh(np.array(topology.devices[:devices]), "x")


_CUDA = "jax_cuda13_plugin" if importlib.util.find_spec("jax_cuda13_plugin") else "jax_cuda12_plugin"
CHIPS = [
    Chip("v5e", 197e12, 819e9, "libtpu"),
    Chip("v6e", 918e12, 1640e9, "libtpu"),
    Chip("H100", 989e12, 3350e9, _CUDA),
]


def installed() -> list[Chip]:
    """The chips whose compilers are installed."""
    return [chip for chip in CHIPS if importlib.util.find_spec(chip.needs)]


def on(mesh: Mesh, tree: Any, *spec: Any) -> Any:
    """The shapes of a tree of arrays or shapes, laid out on a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def bfloat16_params(config: mp.ModelConfig) -> Any:
    """Shapes of the params of the tower and the connector."""
    shapes = mp.params.param_shapes(config, ("vision", "connector"))
    return mp.params.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in shapes.items()})
