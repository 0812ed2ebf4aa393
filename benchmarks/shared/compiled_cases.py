"""Compiles one side of `benchmarks.compiled`, and prints JSON: settings -> program -> what XLA says of it.

    python -P compiled_cases.py CHECKOUT

PYTHONPATH must begin with CHECKOUT. The old code runs this file too, so it imports nothing of `benchmarks`. Params are
shapes without values, and no program runs.
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import multipatch_jax as mp

XLA_ALONE = "float32, XLA alone"
SETTINGS = ("float32", XLA_ALONE, "bfloat16")
TILES = (1, 17)
PHOTO, SMALL = (3000, 4000), (600, 800)
PROGRAMS = (
    *(f"encode_tiles of {count}" for count in TILES),
    "encode_image, NumPy {} x {}".format(*PHOTO),
    "encode_image, jax.Array {} x {}".format(*SMALL),
)
Programs = Iterator[jax.stages.Lowered]  # in the order of PROGRAMS


def uint8(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*shape, 3), np.uint8)


def lowered(params: Any, config: mp.ModelConfig, settings: str) -> Programs:
    """The programs of a commit with `mp.Compute`."""
    encode, side = mp.encode, config.tiling.tile_size
    compute = mp.Compute(encoder="flax") if settings == XLA_ALONE else mp.Compute()
    params, execution = encode.prepare_execution(params, config, compute)
    for count in TILES:
        yield encode.lower_encode_tiles(params, uint8(count, side, side), execution)
    photo = mp.image.prepare_image(np.zeros((*PHOTO, 3), np.uint8), config.tiling)
    yield encode.lower_encode_image(params, photo, execution)
    yield encode.lower_encode_image(params, uint8(1, *SMALL), execution)


def lowered_before_compute(params: Any, config: Any, settings: str) -> Programs:
    """The programs of a commit whose config says how to compute, such as 7ccde8e; their names are private there."""
    encode: Any = importlib.import_module("multipatch_jax.encode")
    preprocess: Any = importlib.import_module("multipatch_jax.preprocess")
    tiling, side = config.tiling, config.tiling.tile_size
    if settings == XLA_ALONE:
        config = dataclasses.replace(config, attention="blocked")
    config, params = encode.resolve(config, params), encode.model_params(params)
    static = {"config": config, "batch_size": encode.tiles_in_flight(None), "mesh": None}
    for count in TILES:
        yield encode._encode_tiles.lower(params, uint8(count, side, side), **static)
    static["resampling"] = encode.default_implementation()
    plan, bucket = mp.plan_tiles(*PHOTO, tiling), preprocess.bucket_of(*PHOTO)
    filters = preprocess.image_filters(plan, tiling, bucket)
    yield encode._encode_padded.lower(params, uint8(*bucket), filters, num_tiles=plan.num_tiles, **static)
    yield encode._encode_pixels.lower(params, uint8(1, *SMALL), **static)


def figures(program: jax.stages.Lowered) -> dict[str, float]:
    """XLA's figures of a program, which it compiles first."""
    compiled = program.compile()
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return {
        "flops": cost["flops"],
        "bytes accessed": cost["bytes accessed"],
        "temp memory": memory.temp_size_in_bytes,
    }


def main() -> None:
    (checkout,) = map(Path, sys.argv[1:])
    if not Path(mp.__file__).resolve().is_relative_to(checkout.resolve()):
        raise SystemExit(f"Expected the multipatch_jax of {checkout}, imported that of {Path(mp.__file__).parent}.")
    if hasattr(mp.encode, "lower_encode_tiles"):
        lower = lowered
    elif hasattr(mp.encode, "_encode_padded"):
        lower = lowered_before_compute
    else:
        raise SystemExit("Expected a commit whose multipatch_jax.encode has lower_encode_tiles or _encode_padded.")
    preset = mp.presets.SMOLVLM_256M
    config = dataclasses.replace(preset, vision=dataclasses.replace(preset.vision, num_hidden_layers=2))
    shapes = jax.eval_shape(lambda: mp.init_params(jax.random.key(0), config))
    found = {}
    for settings in SETTINGS:
        dtype = settings.partition(",")[0]
        params = jax.tree.map(lambda x, dtype=dtype: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
        programs = lower(params, config, settings)
        found[settings] = {name: figures(program) for name, program in zip(PROGRAMS, programs, strict=True)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
