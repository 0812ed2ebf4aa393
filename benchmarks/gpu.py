"""Measures this library and its peers on this GPU: `python -m benchmarks.gpu`, or where the time goes: `--profile`.

Needs an NVIDIA GPU, JAX and torch with CUDA, and transformers. All run SmolVLM-256M in bfloat16 on the same random
weights:

* 17 tiles that lie on the GPU, through tower and connector; also inside the user's own `jit`;
* `encode_image` of 12 megapixels that lie on the GPU, and of a NumPy array; and a stream of such arrays;
* the best bfloat16 matmul rate of XLA and torch, which is the ceiling of the others' rates.

Ours, transformers and torch.compile have a process each, and they take turns. Prints a table with the distance of each
system's tokens from float32 ones, and writes benchmarks/records/gpu.json. `benchmarks.decode` times generation.

`--profile` lists the kernels of the program of 17 tiles: how often each kind runs, its operations and bytes, the least
time at the chip's peak rates, and the time that it took. Without a GPU it compiles the program for a described H100 and
lists what that has; this needs the wheels that `benchmarks.aot` names.
"""

import functools
import importlib.util
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import ceiling, turns
from benchmarks.shared.checkpoint import make_checkpoint
from benchmarks.shared.flops import tile_flops
from benchmarks.shared.options import turns_parser
from benchmarks.shared.records import write_record
from benchmarks.shared.torch_tile import torch_module
from benchmarks.shared.turns import System, Turn

TILES, MATMUL = 17, 8192
CALLS = 20  # of a turn
PEAK, BANDWIDTH = 989e12, 3350e9  # NVIDIA's figures for an H100 SXM: operations a second in bfloat16, bytes a second


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)


def keep_tokens(folder: Path, name: str, tokens: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", tokens.astype(np.float32))


@functools.cache
def _loaded(folder: Path) -> tuple[Any, Any, Any]:
    """Our config, bfloat16 params on the GPU, and the tiles there."""
    import jax

    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder, dtype="bfloat16")
    return config, jax.device_put(params), jax.device_put(np.load(folder / "tiles.npy"))


def _calls(encode: Callable[[], Any]) -> Turn:
    def turn() -> None:
        for _ in range(CALLS - 1):
            encode()
        encode().block_until_ready()

    return turn


def ours(folder: Path) -> Turn:
    import jax

    import multipatch_jax as mp

    config, params, tiles = _loaded(folder)
    whole = mp.from_pretrained(folder)[1]
    keep_tokens(folder, "float32", np.asarray(mp.encode_tiles(jax.device_put(whole), tiles, config=config)))
    keep_tokens(folder, "ours", np.asarray(mp.encode_tiles(params, tiles, config=config)))
    return _calls(lambda: mp.encode_tiles(params, tiles, config=config))


def ours_nested(folder: Path) -> Turn:
    import jax

    import multipatch_jax as mp

    config, params, tiles = _loaded(folder)
    encode = jax.jit(lambda params, tiles: mp.encode_tiles(params, tiles, config=config))
    keep_tokens(folder, "nested", np.asarray(encode(params, tiles)))
    return _calls(lambda: encode(params, tiles))


def whole_image(folder: Path, on_gpu: bool) -> Turn:
    import jax

    import multipatch_jax as mp

    config, params, _ = _loaded(folder)
    photo = jax.device_put(photograph()) if on_gpu else photograph()
    return _calls(lambda: mp.encode_image(params, photo, config=config))


def stream(folder: Path) -> Turn:
    import multipatch_jax as mp

    config, params, _ = _loaded(folder)
    mp.warmup(params, config=config)
    return lambda: mp.encode_images(params, [photograph()] * CALLS, config=config)


def reference(folder: Path, name: str, compiled: bool = False) -> Turn:
    import torch

    module = torch_module(folder).cuda().bfloat16()
    if compiled:
        module = torch.compile(module)
    pixels = (torch.from_numpy(np.load(folder / "tiles.npy")).cuda().float() - 127.5) / 127.5
    pixels = pixels.permute(0, 3, 1, 2).bfloat16().contiguous()
    with torch.inference_mode():
        keep_tokens(folder, name, module(pixels).float().cpu().numpy())

    def turn() -> None:
        with torch.inference_mode():
            for _ in range(CALLS):
                module(pixels)
            torch.cuda.synchronize()

    return turn


# name: the system, and the file that it saves its tokens in
TOWERS: dict[str, tuple[System, str]] = {
    "multipatch_jax": (ours, "ours"),
    "multipatch_jax, inside the user's jit": (ours_nested, "nested"),
    "transformers, sdpa": (lambda folder: reference(folder, "sdpa"), "sdpa"),
    "transformers, torch.compile": (lambda folder: reference(folder, "compiled", compiled=True), "compiled"),
}
WHOLE: dict[str, System] = {
    "encode_image, 12 megapixels, on the GPU": lambda folder: whole_image(folder, on_gpu=True),
    "encode_image, 12 megapixels, NumPy": lambda folder: whole_image(folder, on_gpu=False),
    "encode_images, 12 megapixels, NumPy": stream,
}
CEILING: dict[str, System] = {
    "matmul, XLA": ceiling.jax_matmul(MATMUL, "bfloat16", CALLS),
    "matmul, torch": ceiling.torch_matmul(MATMUL, "bfloat16", CALLS, "cuda"),
}
SYSTEMS = {name: system for name, (system, _) in TOWERS.items()} | WHOLE | CEILING
PROCESSES = [
    ["multipatch_jax", "multipatch_jax, inside the user's jit", *WHOLE, "matmul, XLA"],
    ["transformers, sdpa", "matmul, torch"],
    ["transformers, torch.compile"],
]


def name_of_gpu() -> str | None:
    """The GPU's name; None without an NVIDIA GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def compiled_for_an_h100() -> tuple[Any, None]:
    """The program of 17 tiles, compiled for a described chip."""
    from benchmarks.shared import chips  # isort: skip  (before JAX)
    import jax

    from multipatch_jax.encode import lower_encode_tiles, prepare_execution
    from multipatch_jax.presets import SMOLVLM_256M

    (chip,) = (chip for chip in chips.CHIPS if chip.platform == "cuda")
    params, execution = prepare_execution(chips.bfloat16_params(SMOLVLM_256M), SMOLVLM_256M, platform="cuda")
    tiles = jax.ShapeDtypeStruct((TILES, 512, 512, 3), np.uint8)
    params, tiles = chips.on(chip.mesh(), params), chips.on(chip.mesh(), tiles)
    return lower_encode_tiles(params, tiles, execution).compile(), None


def run_on_this_gpu() -> tuple[Any, dict[str, float]]:
    """The program of 17 tiles, and the seconds of its kernels."""
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


def profile(gpu: str | None) -> None:
    """Prints the table of kernels."""
    program, seconds = compiled_for_an_h100() if gpu is None else run_on_this_gpu()
    from benchmarks.shared.kernels import kernels_of, report
    from benchmarks.shared.programs import text_of

    print(f"{gpu or 'compiled for an H100, not run'}: 17 tiles, SmolVLM-256M, bfloat16")
    print("\n".join(report(kernels_of(text_of(program)), PEAK, BANDWIDTH, seconds)))


def main() -> int:
    """0 when measured, 2 without a GPU."""
    options = turns_parser(__doc__, rounds=7)
    options.add_argument("--profile", action="store_true", help="list the kernels of the program of 17 tiles")
    args = options.parse_args()
    if args.worker:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the processes share the GPU's memory
        turns.work(SYSTEMS, *args.worker)
        return 0
    gpu = name_of_gpu()
    if args.profile:
        profile(gpu)
        return 0
    if gpu is None or importlib.util.find_spec("torch") is None:
        print("benchmarks.gpu needs an NVIDIA GPU, and torch with CUDA; --profile works without.")
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder)
        tiles = np.random.default_rng(0).integers(0, 256, (TILES, 512, 512, 3), np.uint8)
        np.save(folder / "tiles.npy", tiles)
        times = turns.take_turns("benchmarks.gpu", SYSTEMS, folder, args.rounds, PROCESSES)
        tokens = {file: np.load(folder / f"{file}.npy") for file in ("float32", *(file for _, file in TOWERS.values()))}
    times = {name: [seconds / CALLS for seconds in times[name]] for name in times}
    report_times(times, tokens, gpu)
    write_record("gpu", "jax jaxlib flax torch transformers numpy".split(), seconds=times, gpu=gpu)
    return 0


def report_times(times: dict[str, list[float]], tokens: dict[str, np.ndarray], gpu: str) -> None:
    """Prints the table."""
    import multipatch_jax as mp  # after the turns: these two would slow them
    from multipatch_reference import distance

    flops = TILES * tile_flops(mp.presets.SMOLVLM_256M)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    rates = {name: ceiling.rate(MATMUL, medians[name]) for name in CEILING}
    best = max(rates.values())
    print(f"{gpu:<44} {'ms':>6} {'ratio':>6} {'TFLOP/s':>8} {'of ceiling':>10} {'from float32':>12}")
    for name, (_, file) in TOWERS.items():
        rate, ratio = flops / medians[name], turns.ratio(times, name, "transformers, sdpa")
        error = distance(tokens[file], tokens["float32"])
        line = f"{medians[name] * 1e3:6.2f} {ratio:6.2f} {rate / 1e12:8.0f} {rate / best:10.0%} {error:12.2e}"
        print(f"{name:<44} {line}")
    for name in WHOLE:
        print(f"{name:<44} {medians[name] * 1e3:6.2f}")
    for name, rate in rates.items():
        print(f"{name:<44} {'':>6} {'':>6} {rate / 1e12:8.0f}")


if __name__ == "__main__":
    raise SystemExit(main())
