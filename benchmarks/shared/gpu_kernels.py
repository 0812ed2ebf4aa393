"""The program of 17 tiles of SmolVLM-256M in bfloat16, kernel by kernel: `python -m benchmarks.gpu --profile`."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared.older import extract
from benchmarks.shared.processes import ROOT, run_python

TILES = 17
PEAK, BANDWIDTH = 989e12, 3350e9  # NVIDIA's figures for an H100 SXM: operations a second in bfloat16, bytes a second


def compiled_for_an_h100() -> tuple[Any, None]:
    """The program, compiled for a described chip."""
    from benchmarks.shared import chips  # isort: skip  (before JAX)
    import jax

    from multipatch_jax.encode import lower_encode_tiles, prepare_execution
    from multipatch_jax.presets import SMOLVLM_256M

    (chip,) = (chip for chip in chips.CHIPS if chip.platform == "cuda")
    params, execution = prepare_execution(chips.bfloat16_params(SMOLVLM_256M), SMOLVLM_256M, platform="cuda")
    tiles = jax.ShapeDtypeStruct((TILES, 512, 512, 3), np.uint8)
    params, tiles = chips.on(chip.mesh(), (params, tiles))
    return lower_encode_tiles(params, tiles, execution).compile(), None


def run_on_this_gpu() -> tuple[Any, dict[str, float]]:
    """The program, and the seconds of its kernels."""
    import jax

    from benchmarks.shared.kernels import kernel_seconds
    from multipatch_jax.encode import lower_encode_tiles, prepare_execution
    from multipatch_jax.nn import KERNELS
    from multipatch_jax.params import init_params
    from multipatch_jax.presets import SMOLVLM_256M

    params = jax.tree.map(lambda x: x.astype("bfloat16"), init_params(jax.random.key(0), SMOLVLM_256M))
    params, execution = prepare_execution(params, SMOLVLM_256M)
    tiles = jax.device_put(np.random.default_rng(0).integers(0, 256, (TILES, 512, 512, 3), np.uint8))
    options: dict[str, str | bool] = dict(KERNELS[execution.compute.attention].compiler_options)
    apart = {"xla_gpu_enable_command_buffer": ""}  # otherwise a trace names no instructions
    program = lower_encode_tiles(params, tiles, execution).compile(compiler_options={**options, **apart})
    return program, kernel_seconds(lambda: program(params, tiles))


def print_profile(gpu: str | None) -> None:
    """Prints the table of kernels.

    Args:
      gpu: the name of this machine's GPU, on which the program runs; None compiles it for an H100.
    """
    program, seconds = compiled_for_an_h100() if gpu is None else run_on_this_gpu()
    from benchmarks.shared.kernels import kernels_of, report
    from benchmarks.shared.programs import text_of

    print(f"{gpu or 'compiled for an H100, not run'}: {TILES} tiles, SmolVLM-256M, bfloat16")
    print("\n".join(report(kernels_of(text_of(program)), PEAK, BANDWIDTH, seconds)))


def print_older_profile(commit: str) -> None:
    """Prints the table of the kernels of an older commit's program, by this checkout's benchmarks.

    Raises:
      ValueError: git knows no such commit.
    """
    with tempfile.TemporaryDirectory() as name:
        extract(commit, Path(name) / "old", "multipatch_jax")
        path = f"{name}/old:{ROOT}"  # the package is the older one, and all else is of this checkout
        print(run_python("-P", "-m", "benchmarks.gpu", "--profile", PYTHONPATH=path), end="")
