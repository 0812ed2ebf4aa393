"""Compiles a step of a generation for a TPU v5e and, if its wheels are installed, an H100.

    pip install -e ".[aot]"         (Linux; for the H100 also jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
                                     nvidia-cudnn-cu12)
    python -m benchmarks.decode_aot         in some minutes; needs none of these chips
    python -m benchmarks.decode_aot --short         four layers for a v5e: does it still compile?

For one step of SmolVLM-256M in bfloat16, it prints the bytes that the compiled program moves to and from the chip's
memory (`shared/traffic.py`) beside the least that a step can read, which is all params and the whole cache, and how
much of the state is updated in place. It fails if the bytes are more than 1.15 x the least, or if the cache is not
aliased. The bytes are those of main memory: on a TPU the compiler says what lies there, and on a GPU small arrays that
the step itself makes are taken to stay in its cache; "all arrays" has them too.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.shared import chips  # isort: skip  (before JAX)
import jax
import jax.numpy as jnp

import multipatch_jax as mp
from benchmarks.shared.options import parser
from benchmarks.shared.programs import memory_of, text_of
from benchmarks.shared.traffic import traffic
from multipatch_jax.config import ModelConfig
from multipatch_jax.generate import Engine, Slots, start, step
from multipatch_jax.nn import Compute, Target, resolve_compute, split_layers

CHIPS = ("v5e", "H100")
CACHED = {"H100": 2**20}  # smaller arrays that a step makes stay in this cache: 2 % of an H100's, which is 50 MB
MOST = 1.15  # bytes of a step / bytes of the params and the cache
SIZES = ((1, 2048), (8, 2048), (1, 8192))  # (slots, columns of each)


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def decoder_params(config: ModelConfig) -> Any:
    """Shapes of the bfloat16 params that a step reads, arranged for it."""
    shapes = mp.params.param_shapes(config, ("embeddings", "text"))
    params = {path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in shapes.items()}
    return jax.eval_shape(split_layers, mp.params.unflatten(params))


def steps(chip: chips.Chip, config: ModelConfig, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """The rows of one chip.

    Raises:
      RuntimeError: a step reads or writes too much, or copies the cache.
    """
    assert config.text is not None
    mesh, params = chip.mesh(), decoder_params(config)
    compute = resolve_compute(Compute(), "bfloat16", Target(chip.platform, exported=True))
    table = params["text_model"]["embed_tokens"]
    read = nbytes(params) - nbytes(table)  # of the embeddings, a step reads a row for each slot
    for batch_size, capacity in sizes:
        engine = Engine(config.text, config.image_token_id, compute, batch_size, capacity, str(compute.dtype))
        slots: Slots = jax.eval_shape(lambda engine=engine: start(engine=engine))
        allowed = jax.ShapeDtypeStruct((batch_size, -(-config.text.vocab_size // 32)), jnp.uint32)
        program = step.lower(*chips.on(mesh, (params, slots, allowed)), engine=engine).compile()
        memory, cache = memory_of(program), nbytes(slots.cache)
        everything = traffic(text_of(program))
        moved = traffic(text_of(program), CACHED.get(chip.name, 0))
        ratio = moved / (read + cache)
        name = f"{chip.name}, {batch_size} x {capacity}"
        yield (
            f"{name:<16} {read / 1e6:7.0f} MB {cache / 1e6:7.0f} MB {moved / 1e6:7.0f} MB {ratio:7.3f} x "
            f"{memory.alias_size_in_bytes / 1e6:7.0f} MB {memory.temp_size_in_bytes / 1e6:7.1f} MB "
            f"{moved / chip.bandwidth * 1e3:7.2f} ms {everything / 1e6:7.0f} MB"
        )
        if memory.alias_size_in_bytes < cache:
            raise RuntimeError(f"{name}: expected {cache} bytes of cache aliased, got {memory.alias_size_in_bytes}.")
        if ratio > MOST:
            raise RuntimeError(f"{name}: expected at most {MOST} x the bytes of params and cache, got {ratio:.3f}.")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--short", action="store_true", help="four layers, for a v5e alone")
    short = options.parse_args().short
    config, sizes = mp.presets.SMOLVLM_256M, SIZES
    found = [chip for chip in chips.installed() if chip.name in CHIPS]
    assert config.text is not None
    if short:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_hidden_layers=4))
        found, sizes = [chip for chip in found if chip.name == "v5e"], SIZES[-1:]
    for missing in [chip for chip in chips.CHIPS if not short and chip.name in CHIPS and chip not in found]:
        print(f"{missing.name}: not verified, as {missing.needs} is not installed")
    titles = ("params", "cache", "bytes", "of both", "aliased", "temp", "at rate", "all arrays")
    print(f"{'slots x columns':<16}" + "".join(f"{title:>11}" for title in titles))
    for chip in found:
        for line in steps(chip, config, sizes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
