"""What a train step needs on a TPU v5e 2x2 slice, by the compiled program: no TPU is needed.

    pip install "jax[tpu]" && python -m benchmarks.train_tpu

Tunes the tower and connector of SmolVLM-256M (and of SmolVLM-2.2B's larger tower) with AdamW, float32 masters, bfloat16
computation and remat, over a mesh of four chips: params and optimiser state split over `fsdp`. XLA says what lies on
each chip; the collectives are counted in its text, with the bytes of their results.
"""

import dataclasses
import math
import re

from benchmarks import chips  # isort: skip  (before JAX)
import jax
import numpy as np
import optax

import multipatch_jax as mp
from multipatch_jax.params import sharding
from multipatch_jax.train import step as training

HBM = 16e9  # bytes of a v5e chip
TILES = 8  # on each chip: a piece of a batch
COLLECTIVE = re.compile(r" = (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
WIDTHS = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}


def collectives(text: str) -> dict[str, tuple[int, float]]:
    """Kind -> (how often, bytes of the results on one chip); in a loop as often as it runs.

    A collective that overlaps with work appears in several of XLA's fusions, under one channel; the sums of a shard_map
    have one channel too, but each its own addition.
    """
    computations, entry = chips.computations_of(text)
    found: dict[tuple[str, ...], tuple[str, int, int]] = {}

    def look(name: str, times: int) -> None:
        for line in computations[name].splitlines():
            if match := COLLECTIVE.search(line):
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
                size = sum(WIDTHS[kind] * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in shapes)
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else match[2]
                identity = re.findall(r"(?:channel_id|to_apply)=%?([\w.-]+)", line)
                found[tuple(identity)] = kind, times, times * size
            if loop := chips.LOOP.search(line):
                trips = max(map(int, re.findall(r" constant\((\d+)\)", computations[loop[1]])), default=1)
                look(loop[2], times * trips)
            else:
                for called in re.findall(r"(?:calls|to_apply|async_computation)=%?([\w.-]+)", line):
                    look(called, times)

    look(entry, 1)
    totals: dict[str, tuple[int, float]] = {}
    for kind, times, size in found.values():
        before = totals.get(kind, (0, 0))
        totals[kind] = before[0] + times, before[1] + size
    return totals


def loss_fn(params, batch, rng, encode):
    return mp.train.distillation_loss(encode(params, batch["tiles"]), batch["teacher"])


def compile_step(config: mp.ModelConfig, mesh: jax.sharding.Mesh, tiles: int):
    optimizer = optax.adamw(1e-4, mask=mp.params.kernel_mask)
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in mp.params.param_shapes(config).items()}
    init = lambda params: mp.train.init_train_state(params, optimizer, trainable="all", rng=jax.random.key(0))  # noqa: E731
    state = jax.eval_shape(init, mp.params.unflatten(shapes))
    side, (rows, width) = config.tiling.tile_size, (config.tiling.tokens_per_tile, config.connector.text_hidden_size)
    batch = {
        "tiles": jax.ShapeDtypeStruct((tiles, side, side, 3), np.uint8),
        "teacher": jax.ShapeDtypeStruct((tiles, rows, width), np.float32),
    }
    layout = sharding.shardings(state, mesh)
    state = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, layout)
    batch = chips.on(mesh, batch, *sharding.BATCH)
    # What "auto" comes to where the program runs: this machine is no TPU.
    attention = "plain" if mesh.shape["tensor"] > 1 else "pallas_tpu"
    config = dataclasses.replace(config, attention=attention)
    step = training.make_train_step(
        loss_fn, optimizer, config=config, trainable="all", remat=True, max_norm=1.0, mesh=mesh
    )
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile()


def main() -> None:
    devices = list(chips.CHIPS[0].mesh(4).devices.flat)
    fsdp, mixed = {"fsdp": 4}, {"fsdp": 2, "tensor": 2}
    for name, meshes in {"SmolVLM-256M-Instruct": ({"data": 4}, fsdp, mixed), "SmolVLM-Instruct": (fsdp,)}.items():
        config = dataclasses.replace(mp.PRESETS[name], dtype="bfloat16")
        held = 3 * 4 * mp.params.count_parameters(mp.params.param_shapes(config).values())  # masters and two moments
        print(f"\n{name}, tower and connector, {TILES} tiles a chip; whole state {held / 1e6:.0f} MB")
        for sides in meshes:
            mesh = mp.params.make_mesh(devices=devices, **sides)
            program = compile_step(config, mesh, TILES * mesh.shape["data"] * mesh.shape["fsdp"])
            memory = program.memory_analysis()
            peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
            print(
                f"  {sides}: state and batch {memory.argument_size_in_bytes / 1e6:.0f} MB, temporary "
                f"{memory.temp_size_in_bytes / 1e6:.0f} MB, in all {peak / 1e9:.2f} of {HBM / 1e9:.0f} GB a chip"
            )
            for kind, (times, size) in collectives(program.as_text()).items():
                print(f"    {kind}: {times} times, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
