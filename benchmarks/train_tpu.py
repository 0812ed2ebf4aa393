"""Reads from the compiled program what a train step needs on a TPU v5e 2x2 slice. Needs no TPU.

    pip install "jax[tpu]" && python -m benchmarks.train_tpu

Compiles the training of SmolVLM-256M's tower and connector, and of SmolVLM-2.2B's larger ones, with AdamW, float32
masters, bfloat16 computation and remat, over a mesh of four chips; `fsdp` splits params and optimiser state. Then that
of the whole models by the language model's loss, on chats of 1024 tokens: all params of SmolVLM-256M, and LoRA factors
of decoder and connector of both. Prints the bytes that XLA holds on each chip, and the collectives in the program's
text with the bytes of their results. `--short` compiles two layers of the whole model: does it still compile?
"""

import dataclasses
import functools
from collections.abc import Iterator
from unittest import mock

from benchmarks.shared import chips  # isort: skip  (before JAX)
import jax
import jax.numpy as jnp
import numpy as np
import optax

import multipatch_jax as mp
from benchmarks.shared.options import parser
from benchmarks.shared.programs import collectives, memory_of, text_of

HBM = 16e9  # bytes of a v5e chip


LENGTH = 1024  # tokens of a chat: room for 13 tiles of 64 tokens
TOWER, WHOLE = ("vision", "connector"), mp.params.PARTS
FACTORS = "^(text_model|lm_head|connector)/"
FSDP, MIXED = {"fsdp": 4}, {"fsdp": 2, "tensor": 2}
MESHES = ({"data": 4}, FSDP, MIXED)


def distill(params, batch, rng, encode):
    return mp.train.distillation_loss(encode(params, batch["tiles"]), batch["teacher"])


def of_tower(config: mp.ModelConfig, tiles: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch for `distill`."""
    side, (rows, width) = config.tiling.tile_size, (config.tiling.tokens_per_tile, config.connector.text_hidden_size)
    return {
        "tiles": jax.ShapeDtypeStruct((tiles, side, side, 3), np.uint8),
        "teacher": jax.ShapeDtypeStruct((tiles, rows, width), np.float32),
    }


def of_chats(config: mp.ModelConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch for `language_model_loss`; a chat has an image of one grid of tiles."""
    side, tiles = config.tiling.tile_size, LENGTH // config.tiling.tokens_per_tile - 1
    arrays = {
        name: jax.ShapeDtypeStruct((rows, LENGTH), np.int32) for name in ("input_ids", "attention_mask", "labels")
    }
    return arrays | {"tiles": jax.ShapeDtypeStruct((rows, min(tiles, 13), side, side, 3), np.uint8)}


def compile_step(
    config: mp.ModelConfig, mesh: jax.sharding.Mesh, parts: tuple[str, ...], trainable: str, rows: int
) -> jax.stages.Compiled:
    """The step on the tower, or on the whole model, for a batch of so many tiles or chats."""
    optimizer = optax.adamw(1e-4, mask=mp.params.kernel_mask)
    dtype = np.float32 if trainable == "all" else jnp.bfloat16  # masters are float32; what is frozen is as loaded
    shapes = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in mp.params.param_shapes(config, parts).items()}

    def init(params):
        if trainable == "lora":
            params = mp.params.add_lora(jax.random.key(0), params, kernels=FACTORS, rank=16)
        return mp.train.init_train_state(params, optimizer, trainable=trainable, rng=jax.random.key(0))

    state = jax.eval_shape(init, mp.params.unflatten(shapes))
    layout = mp.params.shardings(state, mesh)
    state = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, layout)
    batch = chips.on(mesh, (of_tower if parts == TOWER else of_chats)(config, rows), *mp.params.BATCH)
    compute = mp.Compute(dtype="bfloat16", remat=True)
    loss_fn = distill
    if parts == WHOLE:
        loss_fn = functools.partial(mp.train.language_model_loss, config=config, compute=compute)
    # What is automatic is decided for this machine's backend, so that is called a TPU while the step is lowered.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        step = mp.train.make_train_step(
            loss_fn, optimizer, config=config, compute=compute, trainable=trainable, max_norm=1.0, mesh=mesh
        )
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    return lowered.compile()


def report(program: jax.stages.Compiled, sides: dict[str, int]) -> Iterator[str]:
    """What a program holds on a chip, and what it sends."""
    memory = memory_of(program)
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    yield (
        f"  {sides}: state and batch {memory.argument_size_in_bytes / 1e6:.0f} MB, temporary "
        f"{memory.temp_size_in_bytes / 1e6:.0f} MB, in all {peak / 1e9:.2f} of {HBM / 1e9:.0f} GB a chip"
    )
    for kind, (times, size) in collectives(text_of(program)).items():
        yield f"    {kind}: {times} times, {size / 1e6:.0f} MB"


def shortened(config: mp.ModelConfig) -> mp.ModelConfig:
    """The config with two layers in each stack."""
    assert config.text is not None
    vision, text = (dataclasses.replace(part, num_hidden_layers=2) for part in (config.vision, config.text))
    return dataclasses.replace(config, vision=vision, text=text)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--short", action="store_true", help="two layers of the whole model, on two meshes")
    short = options.parse_args().short
    devices = list(chips.CHIPS[0].mesh(4).devices.flat)
    small, large = "SmolVLM-256M-Instruct", "SmolVLM-Instruct"
    table = [
        (small, TOWER, "all", 8, MESHES),
        (large, TOWER, "all", 8, (FSDP,)),
        (small, WHOLE, "all", 1, MESHES),
        (small, WHOLE, "lora", 1, (FSDP,)),
        (large, WHOLE, "lora", 1, (FSDP,)),
    ]
    for name, parts, trainable, rows, meshes in [(small, WHOLE, "all", 1, (FSDP, MIXED))] if short else table:
        config = shortened(mp.PRESETS[name]) if short else mp.PRESETS[name]
        count = mp.params.count_parameters(mp.params.param_shapes(config, parts).values())
        units = "tiles" if parts == TOWER else f"chats of {LENGTH} tokens"
        print(
            f"\n{name}, {', '.join(parts)}, trainable={trainable!r}, {count / 1e6:.0f} M params, {rows} {units} a chip"
        )
        for sides in meshes:
            mesh = mp.params.make_mesh(devices=devices, **sides)
            program = compile_step(config, mesh, parts, trainable, rows * mesh.shape["data"] * mesh.shape["fsdp"])
            for line in report(program, sides):
                print(line, flush=True)


if __name__ == "__main__":
    main()
