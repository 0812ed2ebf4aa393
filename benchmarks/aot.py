"""Compiles our programs for TPU v5e and v6e and, if its wheels are installed, an H100. Needs none of these chips.

    pip install -e ".[aot]"         (Linux; for the H100 also jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
                                     nvidia-cudnn-cu12)
    python -m benchmarks.aot        a table of everything, in some minutes
    python -m benchmarks.aot --short        two layers for a v5e, in half a minute: does it still compile?

Prints XLA's cost analysis of each program. Its bytes are an upper bound of the traffic with memory, because it counts
buffers that stay on the chip too; for our attention kernel it counts blocks times grid. The TPU programs were compiled,
but not run on hardware yet; `python -m benchmarks.gpu` times those of an H100.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from benchmarks.shared import chips  # isort: skip  (before JAX)
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import multipatch_jax as mp
from benchmarks.shared.flops import layer_flops
from benchmarks.shared.options import parser
from benchmarks.shared.programs import COLLECTIVE, cost_of, memory_of, text_of
from multipatch_jax.config import ModelConfig, VisionConfig
from multipatch_jax.encode import (
    Execution,
    lower_encode_image,
    lower_encode_tiles,
    lower_stream,
    prepare_execution,
)
from multipatch_jax.image import prepare_image
from multipatch_jax.nn import KERNELS, Compute, Target, resolve_compute, siglip

TILES = 17
TOWERS = {"SigLIP base": mp.presets.SMOLVLM_256M, "So400m": mp.PRESETS["SmolVLM-Instruct"]}


class Layers(nn.Module):
    """Layers one after another. They are not scanned, because XLA counts a loop's body once."""

    config: VisionConfig
    compute: Compute
    count: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.count):
            x, _ = siglip.EncoderLayer(self.config, self.compute, name=f"layer{i}")(x)
        return x


def a_layer(chip: chips.Chip, config: ModelConfig, attention: str = "auto") -> str:
    """The row of one layer for 17 tiles: the difference between a program of two layers and one of one."""
    mesh, found = chip.mesh(), []
    compute = resolve_compute(Compute(attention=attention), "bfloat16", Target(chip.platform, exported=True))
    side, width = config.vision.patches_per_side, config.vision.hidden_size
    for count in (1, 2):
        module = Layers(config.vision, compute, count)
        x = jax.ShapeDtypeStruct((TILES, side**2, width), jnp.bfloat16)
        params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x.shape[1:], x.dtype))
        params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), params)
        program = jax.jit(lambda params, x, module=module: jax.vmap(lambda one: module.apply(params, one))(x))
        compiled = program.lower(*chips.on(mesh, (params, x))).compile()
        cost = cost_of(compiled)
        found.append((cost["flops"], cost["bytes accessed"], memory_of(compiled).temp_size_in_bytes))
    flops, moved = (two - one for one, two in zip(found[0][:2], found[1][:2], strict=True))
    true = TILES * layer_flops(config)
    return (
        f"{flops / true:6.3f} {moved / 1e6:7.0f} MB {moved / chip.bandwidth * 1e3:7.2f} ms "
        f"{true / chip.flops * 1e3:7.2f} ms {found[1][2] / 1e6:6.0f} MB"
    )


def flash(q, k, v, mask, precision):
    """JAX's own flash kernel, with the fastest of the blocks that we tried."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

    sizes = BlockSizes(block_q=512, block_k_major=1024, block_k=512, block_b=1)
    q, k, v = (x.transpose(1, 0, 2)[None] for x in (q, k, v))
    return flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5, block_sizes=sizes)[0].transpose(1, 0, 2)


def splash(q, k, v, mask, precision):
    """JAX's own splash kernel."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    q, k, v = (x.transpose(1, 0, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((q.shape[1],) * 2)] * len(q))
    out = splash_attention_kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1)(q, k, v)
    assert isinstance(out, jax.Array)  # without the residuals, which it returns on request
    return out.transpose(1, 0, 2)


def layers(chip: chips.Chip) -> Iterator[str]:
    """The table of a layer."""
    yield f"{'one layer, 17 tiles, bfloat16':<34} {'flops':>6} {'bytes':>10} {'memory':>10} {'matmuls':>10} {'temp':>9}"
    for tower, config in TOWERS.items():
        for kernel in ("pallas_tpu", "plain"):
            line = a_layer(chip, config, kernel)
            yield f"{f'{chip.name}, {tower}, {kernel}':<34} {line}"
    for library in (flash, splash):
        kernel = dataclasses.replace(KERNELS["pallas_tpu"], function=library)
        with mock.patch.dict(KERNELS, pallas_tpu=kernel):
            line = a_layer(chip, mp.presets.SMOLVLM_256M)
        # XLA prints a kernel's bytes as its author estimated them, and these two leave out blocks that are read again.
        yield f"{f'{chip.name}, SigLIP base, JAX {library.__name__}':<34} {line}"


def compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program, and the line with its memory and the seconds that it took."""
    start = time.perf_counter()
    program = lowered.compile()
    seconds, memory = time.perf_counter() - start, memory_of(program)
    held = memory.argument_size_in_bytes / 1e6
    return (
        program,
        f"{memory.temp_size_in_bytes / 1e6:5.0f} MB temp, {held:5.0f} MB arguments, {seconds:4.1f} s to compile",
    )


def check_program(name: str, text: str, execution: Execution) -> str:
    """Names the program's attention kernel.

    Raises:
      RuntimeError: the kernel is not in the program, or a buffer holds the scores of a tile.
    """
    kernel = {"pallas_tpu": "tpu_custom_call", "cudnn": "__cudnn$fmhaSoftmax"}[execution.compute.attention]
    if kernel not in text:
        raise RuntimeError(f"{name}: expected the kernel {kernel} in the program, found none.")
    patches = execution.config.vision.patches_per_side**2
    if scores := re.search(rf"\[(?:\d+,)+{patches},{patches}\]", text):
        raise RuntimeError(f"{name}: expected no buffer of attention scores, found {scores[0]}.")
    return f"{kernel}, no buffer of scores"


def programs(
    chip: chips.Chip,
    config: ModelConfig,
    batch_sizes: Sequence[int] = (1, 8, TILES),
    size: tuple[int, int] | None = (3000, 4000),
) -> Iterator[str]:
    """The programs of the public functions, for one chip."""
    mesh, side = chip.mesh(), config.tiling.tile_size
    tiles = chips.on(mesh, jax.ShapeDtypeStruct((TILES, side, side, 3), np.uint8))
    for batch_size in batch_sizes:
        params, execution = prepared(chip, mesh, config, batch_size)
        program, line = compiled(lower_encode_tiles(params, tiles, execution))
        name = f"{chip.name}, encode_tiles of {TILES}, {batch_size} in flight"
        yield f"{name:<44} {line}; {check_program(name, text_of(program), execution)}"
    if size is None:
        return
    params, execution = prepared(chip, mesh, config, 8)
    image = prepare_image(np.zeros((*size, 3), np.uint8), config.tiling, form=execution.resize_form)
    image = image._replace(pixels=chips.on(mesh, image.pixels), steps=chips.on(mesh, image.steps))
    lowered = lower_encode_image(params, image, execution)
    yield f"{f'{chip.name}, encode_image of {size[0]} x {size[1]}':<44} {compiled(lowered)[1]}"


def prepared(chip: chips.Chip, mesh: Any, config: ModelConfig, batch_size: int) -> tuple[Any, Execution]:
    """Shapes of bfloat16 params on a mesh, and what a program for this chip is."""
    params = chips.bfloat16_params(config)
    params, execution = prepare_execution(params, config, batch_size=batch_size, platform=chip.platform)
    return chips.on(mesh, params), execution


def stream(chip: chips.Chip, config: ModelConfig) -> Iterator[str]:
    """The programs of the stream on four chips: the buffer of each chip, and that they exchange nothing."""
    mesh, side, count = chip.mesh(4), config.tiling.tile_size, 8
    params, execution = prepared(chip, mesh, config, count)
    programs = dict(lower_stream(params, dataclasses.replace(execution, mesh=mesh)))
    names = {"a chunk encoded": f"encode {4 * count} tiles", "an image appended": "append an image of 4096 pixels"}
    for name, lowered in ((name, programs[program]) for name, program in names.items()):
        program, line = compiled(lowered)
        text = text_of(program)
        talk = COLLECTIVE.findall(text)
        shapes = [x.shape for x in jax.tree.leaves(lowered.args_info)]
        (tiles,) = (shape[0] for shape in shapes if shape[1:] == (side, side, 3))  # of the buffers of all chips
        held = f"u8[{tiles // mesh.size},{side},{side},3]"
        if talk or held not in text:
            raise RuntimeError(f"{name}: expected {held} on each chip and no collective, found {talk}.")
        yield f"{f'{chip.name} 2x2, {name}':<44} {line}; {held} of {tiles} tiles a chip, no collective"


def short() -> None:
    """Compiles two layers of the real width for a v5e, and leaves out `encode_image`, which takes XLA a minute."""
    (chip,) = (chip for chip in chips.installed() if chip.name == "v5e")
    two = dataclasses.replace(mp.presets.SMOLVLM_256M.vision, num_hidden_layers=2)
    config = dataclasses.replace(mp.presets.SMOLVLM_256M, vision=two)
    for line in programs(chip, config, (8,), None):
        print(line, flush=True)
    print(next(stream(chip, config)))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--short", action="store_true", help="two layers, for a v5e alone")
    if options.parse_args().short:
        short()
        return
    found = chips.installed()
    for missing in [chip for chip in chips.CHIPS if chip not in found]:
        print(f"{missing.name}: not verified, as {missing.needs} is not installed")
    for chip in found:
        tables: list[Callable[[], Iterator[str]]] = []
        config = mp.presets.SMOLVLM_256M
        if chip.platform == "tpu":
            tables += [functools.partial(layers, chip)]
        tables += [functools.partial(programs, chip, config)]
        if chip.name == "v5e":
            tables += [functools.partial(stream, chip, config)]
        for table in tables:
            for line in table():
                print(line, flush=True)
            print()


if __name__ == "__main__":
    main()
