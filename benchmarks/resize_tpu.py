"""What cutting a 12-megapixel photograph into 13 tiles costs on a TPU v5e, and what encoding them: no TPU is needed.

    pip install "jax[tpu]" && python -m benchmarks.resize_tpu

XLA compiles for a described chip, and its text carries estimated cycles of the operations; a loop's body counts as
often as it runs, and of a conditional the branch that costs more. These are XLA's estimates, not a measurement; tiling
and encoding are held against each other by the same ruler. Printed are the program of an image's exact shape, that of
its size bucket, which NumPy arrays and files go through, and the encoder with one tile in flight and with all.
"""

import dataclasses
import functools
import os
import re

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multipatch_jax import weights
from multipatch_jax.encode import trace_encode
from multipatch_jax.preprocess import bucket_of, image_filters, tile_image, tile_padded
from multipatch_jax.presets import SMOLVLM_256M
from multipatch_jax.tiling import plan_tiles

FLOPS, CLOCK = 197e12, 1.5e9  # a second; the clock is the FLOPs over 4 matrix units of 2 * 128 * 128
TILE_FLOPS = 214.7e9
TILING = SMOLVLM_256M.tiling


def cycles(text: str) -> int:
    """The sum of XLA's estimates over the entry computation."""
    computations = {
        name: body for name, body in re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", text, re.M | re.S)
    }

    def trips(line: str, condition: str) -> int:
        """A loop's constant bound; where that is data, the blocks of 128 outputs that it can have at most."""
        bounds = re.findall(r" constant\((\d+)\)", computations[condition])
        return max(map(int, bounds or re.findall(r"s32\[(\d+),128\]", line)))

    @functools.cache
    def total(name: str) -> int:
        result = 0
        for line in computations[name].splitlines():
            result += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if loop := re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                result += trips(line, loop[1]) * total(loop[2])
            if branches := re.search(r" conditional\(.*branch_computations=\{(.*?)\}", line):
                result += max(total(branch.strip(" %")) for branch in branches[1].split(","))
        return result

    return total(re.search(r"^ENTRY %?([\w.-]+)", text, re.M)[1])


def milliseconds(function, *arguments) -> float:
    """Of a function of arrays or their shapes, compiled for one v5e chip."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    one_chip = NamedSharding(Mesh(np.array(chips[:1]), "x"), PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_chip), arguments)
    return cycles(jax.jit(function).lower(*shapes).compile().as_text()) / CLOCK * 1e3


def encoding(num_tiles: int, batch_size: int) -> float:
    """Milliseconds of tower and connector in bfloat16."""
    config = dataclasses.replace(SMOLVLM_256M, dtype="bfloat16", attention="plain", precision="default")
    shapes = weights.param_shapes(config, ("vision", "connector"))
    params = weights.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in shapes.items()})
    tiles = jax.ShapeDtypeStruct((num_tiles, TILING.tile_size, TILING.tile_size, 3), np.uint8)
    return milliseconds(functools.partial(trace_encode, config=config, batch_size=batch_size), params, tiles)


def main() -> None:
    floor = 13 * TILE_FLOPS / FLOPS * 1e3
    encoders = {f"{batch_size} in flight": encoding(13, batch_size) for batch_size in (1, 13)}
    fastest = min(encoders.values())
    print(f"encoding 13 tiles: {', '.join(f'{ms:.1f} ms {name}' for name, ms in encoders.items())}; ", end="")
    print(f"{floor:.1f} ms at peak FLOPs")
    for height, width in ((3000, 4000), (4000, 3000)):
        image, plan = np.empty((height, width, 3), np.uint8), plan_tiles(height, width, TILING)
        bucket = bucket_of(height, width)
        filters = image_filters(plan, TILING, bucket)
        if plan.resized == plan.stretched:
            filters = filters._replace(to_multiples=None)  # what the program leaves out for this image
        static = {"num_tiles": plan.num_tiles, "tiling": TILING, "implementation": "banded"}
        programs = {
            "exact shape": milliseconds(lambda x: tile_image(x, TILING, implementation="banded"), image),
            "size bucket": milliseconds(
                functools.partial(tile_padded, **static), np.empty((*bucket, 3), np.uint8), filters
            ),
        }
        for name, ms in programs.items():
            print(
                f"tiling {height} x {width}, {name}: {ms:.2f} ms, {ms / fastest:.1%} of the faster encoder, "
                f"{ms / floor:.1%} of peak FLOPs"
            )


if __name__ == "__main__":
    main()
