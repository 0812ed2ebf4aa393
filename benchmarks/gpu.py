"""Measures the milliseconds of 17 tiles on this GPU, for multipatch_jax and its peers: `python -m benchmarks.gpu`.

Needs an NVIDIA GPU, JAX and torch with CUDA, and transformers. All systems run SmolVLM-256M's tower and connector in
bfloat16 on the same random weights and the same tiles, which lie on the GPU before the turns. Each system has its own
process and they take turns of 20 images. The ceiling is the best bfloat16 matmul rate of XLA and torch, measured in the
same turns. Prints a table with the distance of each system's tokens from float32 ones, and writes
benchmarks/records/gpu.json.
"""

import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.shared import ceiling, turns
from benchmarks.shared.checkpoint import make_checkpoint
from benchmarks.shared.flops import tile_flops
from benchmarks.shared.options import turns_parser
from benchmarks.shared.records import write_record
from benchmarks.shared.torch_tile import torch_module
from benchmarks.shared.turns import System, Turn

TILES, IMAGES, MATMUL = 17, 20, 8192


def keep_tokens(folder: Path, name: str, tokens: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", tokens.astype(np.float32))


def ours(folder: Path, flags: str = "", image: str = "") -> Turn:
    os.environ["XLA_FLAGS"] = flags  # before JAX
    import jax

    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder)
    tiles = jax.device_put(np.load(folder / "tiles.npy"))
    if not (folder / "float32.npy").exists():
        keep_tokens(folder, "float32", np.asarray(mp.encode_tiles(params, tiles, config=config)))
    config, params = mp.from_pretrained(folder, dtype="bfloat16")
    keep_tokens(folder, f"ours{flags}", np.asarray(mp.encode_tiles(params, tiles, config=config)))
    photo = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    photo = {"": None, "NumPy": photo, "jax.Array": jax.device_put(photo)}[image]

    def encode() -> jax.Array:
        if photo is None:
            return mp.encode_tiles(params, tiles, config=config)
        return mp.encode_image(params, photo, config=config)

    def turn() -> None:
        for _ in range(IMAGES - 1):
            encode()
        encode().block_until_ready()

    return turn


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
            for _ in range(IMAGES):
                module(pixels)
            torch.cuda.synchronize()

    return turn


CUBLAS = "--xla_gpu_enable_triton_gemm=false"
# name: the system, and the file that it saves its tokens in
SYSTEMS: dict[str, tuple[System, str]] = {
    "multipatch_jax": (ours, "ours"),
    f"multipatch_jax, {CUBLAS}": (lambda folder: ours(folder, CUBLAS), f"ours{CUBLAS}"),
    "transformers, sdpa": (lambda folder: reference(folder, "sdpa"), "sdpa"),
    "transformers, torch.compile": (lambda folder: reference(folder, "compiled", compiled=True), "compiled"),
}
WHOLE: dict[str, System] = {
    f"encode_image, 12 megapixels, {kind}": lambda folder, kind=kind: ours(folder, CUBLAS, kind)
    for kind in ("jax.Array", "NumPy")
}
CEILING: dict[str, System] = {
    "matmul, XLA": ceiling.jax_matmul(MATMUL, "bfloat16", IMAGES),
    "matmul, torch": ceiling.torch_matmul(MATMUL, "bfloat16", IMAGES, "cuda"),
}


def main() -> None:
    args = turns_parser(__doc__, rounds=9).parse_args()
    systems = {name: system for name, (system, _) in SYSTEMS.items()} | WHOLE | CEILING
    if args.worker:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the processes share the GPU's memory
        return turns.work(systems, *args.worker)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder)
        tiles = np.random.default_rng(0).integers(0, 256, (TILES, 512, 512, 3), np.uint8)
        np.save(folder / "tiles.npy", tiles)
        times = turns.take_turns("benchmarks.gpu", systems, folder, args.rounds)
        tokens = {
            file: np.load(folder / f"{file}.npy") for file in ("float32", *(file for _, file in SYSTEMS.values()))
        }
    times = {name: [seconds / IMAGES for seconds in times[name]] for name in times}
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpu = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    report(times, tokens, gpu)
    write_record("gpu", "jax jaxlib flax torch transformers numpy".split(), seconds=times, gpu=gpu)


def report(times: dict[str, list[float]], tokens: dict[str, np.ndarray], gpu: str) -> None:
    """Prints the table."""
    import multipatch_jax as mp  # after the turns: these two would slow them
    from multipatch_reference import distance

    flops = TILES * tile_flops(mp.presets.SMOLVLM_256M)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    rates = {name: ceiling.rate(MATMUL, medians[name]) for name in CEILING}
    best = max(rates.values())
    print(f"{gpu:<62} {'ms':>6} {'ratio':>6} {'TFLOP/s':>8} {'of ceiling':>10} {'from float32':>12}")
    for name, (_, file) in SYSTEMS.items():
        rate, ratio = flops / medians[name], turns.ratio(times, name, "transformers, sdpa")
        error = distance(tokens[file], tokens["float32"])
        line = f"{medians[name] * 1e3:6.2f} {ratio:6.2f} {rate / 1e12:8.0f} {rate / best:10.0%} {error:12.2e}"
        print(f"{name:<62} {line}")
    for name in WHOLE:
        print(f"{name:<62} {medians[name] * 1e3:6.2f}")
    for name, rate in rates.items():
        print(f"{name:<62} {'':>6} {'':>6} {rate / 1e12:8.0f}")


if __name__ == "__main__":
    main()
