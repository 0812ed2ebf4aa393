"""What cutting a 12-megapixel photograph into 13 tiles costs on a TPU v5e, and what encoding them: no TPU is needed.

    pip install "jax[tpu]" && python -m benchmarks.resize_tpu

XLA compiles for a described chip, and its text carries estimated cycles of the operations; a loop's body counts as
often as it runs, and of a conditional the branch that costs more. These are XLA's estimates, not a measurement; tiling
and encoding are held against each other by the same ruler. Printed are the program of an image's exact shape, that of
its size bucket, which NumPy arrays and files go through, and the encoder with one tile in flight and with all.
"""

import dataclasses
import functools

from benchmarks import chips  # isort: skip  (before JAX)
import jax
import numpy as np

from multipatch_jax.encode import trace_encode
from multipatch_jax.image import bucket_of, plan_tiles, tile_image, tile_padded, tiling_steps
from multipatch_jax.presets import SMOLVLM_256M

V5E = chips.CHIPS[0]
CLOCK = 1.5e9  # a second: the FLOPs over 4 matrix units of 2 * 128 * 128
TILE_FLOPS = 214.7e9
TILING = SMOLVLM_256M.tiling


def milliseconds(function, *arguments) -> float:
    """Of a function of arrays or their shapes, compiled for one v5e chip."""
    text = jax.jit(function).lower(*chips.on(V5E.mesh(), arguments)).compile().as_text()
    return chips.cycles(text) / CLOCK * 1e3


def encoding(num_tiles: int, batch_size: int) -> float:
    """Milliseconds of tower and connector in bfloat16, with plain attention: of a kernel XLA estimates nothing."""
    config = dataclasses.replace(SMOLVLM_256M, dtype="bfloat16", attention="plain", precision="default")
    params = chips.bfloat16_params(config)
    tiles = jax.ShapeDtypeStruct((num_tiles, TILING.tile_size, TILING.tile_size, 3), np.uint8)
    return milliseconds(functools.partial(trace_encode, config=config, batch_size=batch_size), params, tiles)


def main() -> None:
    floor = 13 * TILE_FLOPS / V5E.flops * 1e3
    encoders = {f"{batch_size} in flight": encoding(13, batch_size) for batch_size in (1, 13)}
    fastest = min(encoders.values())
    print(f"encoding 13 tiles: {', '.join(f'{ms:.1f} ms {name}' for name, ms in encoders.items())}; ", end="")
    print(f"{floor:.1f} ms at peak FLOPs")
    for height, width in ((3000, 4000), (4000, 3000)):
        image, plan = np.empty((height, width, 3), np.uint8), plan_tiles(height, width, TILING)
        bucket = bucket_of(height, width)
        filters = tiling_steps(plan, TILING, bucket)
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
