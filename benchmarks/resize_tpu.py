"""What cutting a 3000 x 4000 photograph into 13 tiles costs on a TPU v5e, by the compiled program: no TPU is needed.

    pip install "jax[tpu]" && python -m benchmarks.resize_tpu

XLA compiles for a described chip. From its text come the operations' estimated cycles; a loop's body counts as often as
it runs. These are XLA's estimates, not a measurement, and of the program of an image's exact shape: a size bucket's
program, which NumPy images go through, pads and branches, and costs more.
"""

import os
import re

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multipatch_jax.config import TilingConfig
from multipatch_jax.preprocess import tile_image

FLOPS, BYTES, CLOCK = 197e12, 819e9, 1.5e9  # a second; the clock is the FLOPs over 4 matrix units of 2 * 128 * 128


def cycles(text: str) -> int:
    """The sum of XLA's estimates over the entry computation, loops multiplied by their trips."""
    computations = {
        name: body for name, body in re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", text, re.M | re.S)
    }

    def total(name: str) -> int:
        result = 0
        for line in computations[name].splitlines():
            result += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if loop := re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                condition, body = loop.groups()
                trips = max(map(int, re.findall(r" constant\((\d+)\)", computations[condition])))
                result += trips * total(body)
        return result

    return total(re.search(r"^ENTRY %?([\w.-]+)", text, re.M)[1])


def main() -> None:
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    one_chip = NamedSharding(Mesh(np.array(chips[:1]), "x"), PartitionSpec())
    for height, width in ((3000, 4000), (4000, 3000), (4032, 1816)):
        image = jax.ShapeDtypeStruct((height, width, 3), np.uint8, sharding=one_chip)
        program = jax.jit(lambda x: tile_image(x, TilingConfig(), implementation="banded")).lower(image).compile()
        cost, estimate = program.cost_analysis(), cycles(program.as_text())
        print(
            f"{height} x {width}: {estimate / 1e6:.2f} M cycles = {estimate / CLOCK * 1e3:.2f} ms; "
            f"{cost['bytes accessed'] / 1e6:.0f} MB = {cost['bytes accessed'] / BYTES * 1e3:.2f} ms; "
            f"{cost['flops'] / 1e9:.1f} GFLOP = {cost['flops'] / FLOPS * 1e3:.2f} ms (loops counted once)"
        )


if __name__ == "__main__":
    main()
