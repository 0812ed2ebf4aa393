"""Reads from the compiled program what a train step needs on a TPU v5e 2x2 slice. Needs no TPU.

    pip install "jax[tpu]" && python -m benchmarks.train_tpu

Compiles the training of SmolVLM-256M's tower and connector, and of SmolVLM-2.2B's larger ones, with AdamW, float32
masters, bfloat16 computation and remat, over a mesh of four chips; `fsdp` splits params and optimiser state. Prints the
bytes that XLA holds on each chip, and the collectives in the program's text with the bytes of their results.
"""

from unittest import mock

from benchmarks.shared import chips  # isort: skip  (before JAX)
import jax
import numpy as np
import optax

import multipatch_jax as mp
from benchmarks.shared.options import parser
from benchmarks.shared.programs import collectives, memory_of, text_of

HBM = 16e9  # bytes of a v5e chip
TILES = 8  # of a batch, on each chip


def loss_fn(params, batch, rng, encode):
    return mp.train.distillation_loss(encode(params, batch["tiles"]), batch["teacher"])


def compile_step(config: mp.ModelConfig, mesh: jax.sharding.Mesh, tiles: int) -> jax.stages.Compiled:
    optimizer = optax.adamw(1e-4, mask=mp.params.kernel_mask)
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in mp.params.param_shapes(config).items()}
    init = lambda params: mp.train.init_train_state(params, optimizer, trainable="all", rng=jax.random.key(0))  # noqa: E731
    state = jax.eval_shape(init, mp.params.unflatten(shapes))
    side, (rows, width) = config.tiling.tile_size, (config.tiling.tokens_per_tile, config.connector.text_hidden_size)
    batch = {
        "tiles": jax.ShapeDtypeStruct((tiles, side, side, 3), np.uint8),
        "teacher": jax.ShapeDtypeStruct((tiles, rows, width), np.float32),
    }
    layout = mp.params.shardings(state, mesh)
    state = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, layout)
    batch = chips.on(mesh, batch, *mp.params.BATCH)
    compute = mp.Compute(dtype="bfloat16", remat=True)
    # What is automatic is decided for this machine's backend, so that is called a TPU while the step is lowered.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        step = mp.train.make_train_step(
            loss_fn, optimizer, config=config, compute=compute, trainable="all", max_norm=1.0, mesh=mesh
        )
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    return lowered.compile()


def main() -> None:
    parser(__doc__).parse_args()
    devices = list(chips.CHIPS[0].mesh(4).devices.flat)
    fsdp, mixed = {"fsdp": 4}, {"fsdp": 2, "tensor": 2}
    for name, meshes in {"SmolVLM-256M-Instruct": ({"data": 4}, fsdp, mixed), "SmolVLM-Instruct": (fsdp,)}.items():
        config = mp.PRESETS[name]
        held = 3 * 4 * mp.params.count_parameters(mp.params.param_shapes(config).values())  # masters and two moments
        print(f"\n{name}, tower and connector, {TILES} tiles a chip; whole state {held / 1e6:.0f} MB")
        for sides in meshes:
            mesh = mp.params.make_mesh(devices=devices, **sides)
            program = compile_step(config, mesh, TILES * mesh.shape["data"] * mesh.shape["fsdp"])
            memory = memory_of(program)
            peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
            print(
                f"  {sides}: state and batch {memory.argument_size_in_bytes / 1e6:.0f} MB, temporary "
                f"{memory.temp_size_in_bytes / 1e6:.0f} MB, in all {peak / 1e9:.2f} of {HBM / 1e9:.0f} GB a chip"
            )
            for kind, (times, size) in collectives(text_of(program)).items():
                print(f"    {kind}: {times} times, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
