"""Milliseconds for the 17 tiles of an image on this GPU, us and our peers: `python -m benchmarks.gpu`.

Needs an NVIDIA GPU, JAX and torch with CUDA, and transformers. SmolVLM-256M's tower and connector in bfloat16, the same
random weights and tiles for all, which lie on the GPU already. Every system has a process of its own and they take
turns of 20 images. The ceiling is the best bfloat16 matmul rate of XLA and torch, measured likewise. Prints a table,
with the distance of every system's tokens from float32 ones, and writes benchmarks/gpu.json.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import turns
from benchmarks.cpu import FLOPS, make_checkpoint, torch_module

TILES, IMAGES, MATMUL = 17, 20, 8192


def keep_tokens(folder: Path, name: str, tokens: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", tokens.astype(np.float32))


def ours(folder: Path, flags: str = "", image: str = "") -> Callable[[], object]:
    os.environ |= {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # before JAX
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

    def run() -> None:
        for _ in range(IMAGES):
            if photo is None:
                tokens = mp.encode_tiles(params, tiles, config=config)
            else:
                tokens = mp.encode_image(params, photo, config=config)
        tokens.block_until_ready()

    return run


def reference(folder: Path, name: str, compiled: bool = False) -> Callable[[], object]:
    import torch

    module = torch_module(folder).cuda().bfloat16()
    if compiled:
        module = torch.compile(module)
    pixels = (torch.from_numpy(np.load(folder / "tiles.npy")).cuda().float() - 127.5) / 127.5
    pixels = pixels.permute(0, 3, 1, 2).bfloat16().contiguous()
    with torch.inference_mode():
        keep_tokens(folder, name, module(pixels).float().cpu().numpy())

    def run() -> None:
        with torch.inference_mode():
            for _ in range(IMAGES):
                module(pixels)
            torch.cuda.synchronize()

    return run


def matmul_jax(folder: Path) -> Callable[[], object]:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    x = jax.random.normal(jax.random.key(0), (MATMUL, MATMUL), "bfloat16")
    product = jax.jit(lambda x: x @ x)

    def run() -> None:
        for _ in range(IMAGES):
            y = product(x)
        y.block_until_ready()

    return run


def matmul_torch(folder: Path) -> Callable[[], object]:
    import torch

    x = torch.randn(MATMUL, MATMUL, device="cuda", dtype=torch.bfloat16)

    def run() -> None:
        for _ in range(IMAGES):
            x @ x
        torch.cuda.synchronize()

    return run


CUBLAS = "--xla_gpu_enable_triton_gemm=false"
# name: the system, and the file that it leaves its tokens in
SYSTEMS: dict[str, tuple[Callable[[Path], Callable[[], object]], str]] = {
    "multipatch_jax": (ours, "ours"),
    f"multipatch_jax, {CUBLAS}": (lambda folder: ours(folder, CUBLAS), f"ours{CUBLAS}"),
    "transformers, sdpa": (lambda folder: reference(folder, "sdpa"), "sdpa"),
    "transformers, torch.compile": (lambda folder: reference(folder, "compiled", compiled=True), "compiled"),
}
WHOLE = {
    f"encode_image, 12 megapixels, {kind}": lambda folder, kind=kind: ours(folder, CUBLAS, kind)
    for kind in ("jax.Array", "NumPy")
}
CEILING = {"matmul, XLA": matmul_jax, "matmul, torch": matmul_torch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    systems = {name: system for name, (system, _) in SYSTEMS.items()} | WHOLE | CEILING
    if args.worker:
        return turns.work(systems, args.worker[0], Path(args.worker[1]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder)
        tiles = np.random.default_rng(0).integers(0, 256, (TILES, 512, 512, 3), np.uint8)
        np.save(folder / "tiles.npy", tiles)
        times = turns.take_turns("benchmarks.gpu", systems, folder, args.rounds)
        tokens = {
            file: np.load(folder / f"{file}.npy") for file in ("float32", *(file for _, file in SYSTEMS.values()))
        }
    report({name: [seconds / IMAGES for seconds in times[name]] for name in times}, tokens)


def report(times: dict[str, list[float]], tokens: dict[str, np.ndarray]) -> None:
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ceiling = max(2 * MATMUL**3 / medians[name] for name in CEILING)
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpu = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(f"{gpu:<62} {'ms':>6} {'ratio':>6} {'TFLOP/s':>8} {'of ceiling':>10} {'from float32':>12}")
    for name, (_, file) in SYSTEMS.items():
        rate, ratio = TILES * FLOPS / medians[name], turns.ratio(times, name, "transformers, sdpa")
        error = np.linalg.norm(tokens[file] - tokens["float32"]) / np.linalg.norm(tokens["float32"])
        line = f"{medians[name] * 1e3:6.2f} {ratio:6.2f} {rate / 1e12:8.0f} {rate / ceiling:10.0%} {error:12.2e}"
        print(f"{name:<62} {line}")
    for name in WHOLE:
        print(f"{name:<62} {medians[name] * 1e3:6.2f}")
    for name in CEILING:
        print(f"{name:<62} {'':>6} {'':>6} {2 * MATMUL**3 / medians[name] / 1e12:8.0f}")
    turns.write_record("gpu", "jax jaxlib flax torch transformers numpy".split(), seconds=times, gpu=gpu)


if __name__ == "__main__":
    main()
