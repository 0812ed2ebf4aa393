"""Estimates what a TPU v5e needs to cut a 12-megapixel photograph into 13 tiles, and to encode them. Needs no TPU.

    pip install "jax[tpu]" && python -m benchmarks.resize_tpu

XLA compiles for a described chip and writes the cycles that it estimates into the program's text. A loop's body counts
as often as the loop runs for this photograph, and a conditional counts its most expensive branch. These are estimates
and no measurement, but tiling and encoding are estimated alike, so their ratio can be read. Prints the milliseconds of
the program of an image's exact shape, of the program of its size bucket, which NumPy arrays and files go through, and
of the encoder with one tile in flight and with all.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock

from benchmarks.shared import chips  # isort: skip  (before JAX)
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.shared.flops import tile_flops
from benchmarks.shared.options import parser
from benchmarks.shared.programs import cycles, text_of
from multipatch_jax.encode import prepare_execution, trace_encode
from multipatch_jax.image import TilePlan, plan_tiles, prepare_image, tile_image, tile_padded
from multipatch_jax.image.steps import PackedSteps, pack_steps
from multipatch_jax.nn import Compute
from multipatch_jax.presets import SMOLVLM_256M
from multipatch_jax.resamplers import AxisWeights

V5E = chips.CHIPS[0]
CLOCK = 1.5e9  # cycles a second: the chip's FLOPs divided by those of its 4 matrix units, 2 * 128 * 128 a cycle each
TILING = SMOLVLM_256M.tiling
RESIZE = importlib.import_module("multipatch_jax.image.resize")


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Estimated milliseconds of a function of arrays or their shapes, compiled for one v5e chip."""
    program = jax.jit(function).lower(*chips.on(V5E.mesh(), arguments)).compile()
    return cycles(text_of(program)) / CLOCK * 1e3


def encoding(num_tiles: int, batch_size: int) -> float:
    """Estimated milliseconds of tower and connector in bfloat16.

    Attention is "plain", because XLA estimates nothing for our kernel.
    """
    compute = Compute(attention="plain")
    params, execution = prepare_execution(
        chips.bfloat16_params(SMOLVLM_256M), SMOLVLM_256M, compute, batch_size, platform="tpu"
    )
    tiles = jax.ShapeDtypeStruct((num_tiles, TILING.tile_size, TILING.tile_size, 3), np.uint8)
    return milliseconds(functools.partial(trace_encode, execution=execution), params, tiles)


def known_sizes(plan: TilePlan) -> Any:
    """Makes one image's sizes constants of its bucket's loops, so that the program's text says how often they run.

    A vertical pass that comes first is left out: these photographs go horizontal first.
    """
    one_pass = RESIZE.banded_pass

    def with_sizes(x: jax.Array, along: AxisWeights, axis: int, support: int, real: tuple[Any, Any]) -> jax.Array:
        out, other_is_done = len(along.starts), x.shape[2 - axis] == len(along.starts)
        if axis == 0 and not other_is_done:
            return lax.empty((3, out, x.shape[2]), np.uint8)
        to_one_tile = out == TILING.tile_size
        before = plan.stretched if to_one_tile else (plan.height, plan.width)
        after = (out, out) if to_one_tile else plan.resized
        height, width = (after[one] if one == axis or other_is_done else before[one] for one in (0, 1))
        return one_pass(x, along, axis, support, (jnp.int32(height), jnp.int32(width)))

    return mock.patch.object(RESIZE, "banded_pass", with_sizes)


def tile_packed(pixels: Any, steps: PackedSteps, **static: Any) -> jax.Array:
    """`tile_padded`, as the programs of a bucket call it."""
    return tile_padded(pixels, steps.unpack(), **static)


def main() -> None:
    parser(__doc__).parse_args()
    floor = 13 * tile_flops(SMOLVLM_256M) / V5E.flops * 1e3
    encoders = {f"{batch_size} in flight": encoding(13, batch_size) for batch_size in (1, 13)}
    fastest = min(encoders.values())
    print(f"encoding 13 tiles: {', '.join(f'{ms:.1f} ms {name}' for name, ms in encoders.items())}; ", end="")
    print(f"{floor:.1f} ms at peak FLOPs")
    for height, width in ((3000, 4000), (4000, 3000)):
        image, plan = np.empty((height, width, 3), np.uint8), plan_tiles(height, width, TILING)
        _, pixels, steps, _ = prepare_image(image, TILING, form="banded")
        assert steps is not None
        if plan.resized == plan.stretched:  # the program of the exact shape leaves this resize out too
            steps = pack_steps(steps.unpack()._replace(to_multiples=None))
        static = {"num_tiles": plan.num_tiles, "tiling": TILING, "form": "banded"}
        exact = milliseconds(lambda x: tile_image(x, TILING, implementation="banded"), image)
        with known_sizes(plan):
            bucket = milliseconds(functools.partial(tile_packed, **static), pixels, steps)
        for name, ms in {"exact shape": exact, "size bucket": bucket}.items():
            print(
                f"tiling {height} x {width}, {name}: {ms:.2f} ms, {ms / fastest:.1%} of the faster encoder, "
                f"{ms / floor:.1%} of peak FLOPs"
            )


if __name__ == "__main__":
    main()
