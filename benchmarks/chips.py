"""Programs compiled for chips that need not be there, and what XLA says of them: import this before anything of JAX.

TPUs are compiled for by libtpu, an H100 by the CUDA wheels; both work on any Linux machine.
"""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip to share
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
if nvidia := importlib.util.find_spec("nvidia"):
    cuda = Path(next(iter(nvidia.submodule_search_locations or [""]))) / "cuda_nvcc"
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={cuda}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import multipatch_jax as mp
from multipatch_jax.config import ModelConfig

# What XLA asks of a GPU that is not there: NVIDIA's figures for an H100 SXM.
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
    """Peak rates a second: bfloat16 operations, bytes from memory."""

    name: str
    flops: float
    bandwidth: float
    needs: str  # a package that compiles for it

    def mesh(self, devices: int = 1) -> Mesh:
        if self.needs == "libtpu":
            topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{self.name}:2x2")
        else:
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name="h100", topology="1x1x1", target_config=_H100
            )
        return Mesh(np.array(topology.devices[:devices]), "x")


CHIPS = [
    Chip("v5e", 197e12, 819e9, "libtpu"),
    Chip("v6e", 918e12, 1640e9, "libtpu"),
    Chip("H100", 989e12, 3350e9, "jax_cuda12_plugin"),
]


def installed() -> list[Chip]:
    return [chip for chip in CHIPS if importlib.util.find_spec(chip.needs)]


def on(mesh: Mesh, tree: Any, *spec: Any) -> Any:
    """The shapes of a tree of arrays or shapes, laid out on a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def bfloat16_params(config: ModelConfig) -> Any:
    """Shapes of the tower's and the connector's params."""
    shapes = mp.params.param_shapes(config, ("vision", "connector"))
    return mp.params.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in shapes.items()})


def layer_flops(config: ModelConfig) -> float:
    """Multiplications and additions of one layer's matmuls, for one tile."""
    vision = config.vision
    patches, width = vision.patches_per_side**2, vision.hidden_size
    return patches * width * (8.0 * width + 4 * vision.intermediate_size + 4 * patches)


LOOP = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")


def computations_of(text: str) -> tuple[dict[str, str], str]:
    """A program's computations by name, and the name of the one that it enters by."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", text, re.M | re.S))
    return computations, re.search(r"^ENTRY %?([\w.-]+)", text, re.M)[1]


def cycles(text: str) -> int:
    """The sum of XLA's estimates over a TPU program's entry computation: loops by their trips, the dearer branch."""
    computations, entry = computations_of(text)

    def trips(line: str, condition: str) -> int:
        """A loop's constant bound; where that is data, the blocks of 128 outputs that it can have at most."""
        bounds = re.findall(r" constant\((\d+)\)", computations[condition])
        return max(map(int, bounds or re.findall(r"s32\[(\d+),128\]", line)))

    totals: dict[str, int] = {}

    def total(name: str) -> int:
        if name in totals:
            return totals[name]
        result = 0
        for line in computations[name].splitlines():
            result += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if loop := LOOP.search(line):
                result += trips(line, loop[1]) * total(loop[2])
            if branches := re.search(r" conditional\(.*branch_computations=\{(.*?)\}", line):
                result += max(total(branch.strip(" %")) for branch in branches[1].split(","))
        totals[name] = result
        return result

    return total(entry)
