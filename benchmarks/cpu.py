"""Seconds per tile on this CPU, us and our peers: `python -m benchmarks.cpu` (needs the `bench` extra).

SmolVLM-256M's tower and connector in float32, the same random weights and the same tile for all. Every system has a
process of its own and they take turns, one tile each, so that a change of the machine's speed meets all of them; what
counts are medians and ratios. The ceiling is the best float32 matmul rate of XLA, torch and NumPy, measured likewise.
Prints a table and writes benchmarks/cpu.json; with `--without-avx512`, which hides those instructions from every system
on a machine that has them, benchmarks/cpu_without_avx512.json.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import turns

FLOPS = 214.7e9  # of a tile: tower and connector
MATMUL = 2048


# ---------------------------------------------------------------------------------------------------------------------
# The systems: from the folder with the checkpoint and the tile to a function that computes the tile's tokens.


def ours(folder: Path, **config: Any) -> Callable:
    import multipatch_jax as mp

    loaded, params = mp.from_pretrained(folder)
    loaded = dataclasses.replace(loaded, **config)
    tile = tile_of(folder)
    return lambda: np.asarray(mp.encode_tiles(params, tile[None], config=loaded))[0]


def reference(folder: Path, attention: str, compiled: bool = False) -> Callable:
    module, x = torch_module(folder, attention), pixels(tile_of(folder))
    import torch

    if compiled:
        module = torch.compile(module)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x))[0].numpy()

    return run


def torch_module(folder: Path, attention: str = "sdpa") -> Any:
    """The reference's modules for full tiles, without its data-dependent masks, which peers cannot compile."""
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    tower, connector = model.model.vision_model, model.model.connector

    class Tile(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.encoder = tower.embeddings, tower.encoder
            self.post_layernorm, self.connector = tower.post_layernorm, connector

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            x = self.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
            x = x + self.embeddings.position_embedding.weight
            for layer in self.encoder.layers:
                x = layer(x, None)
            return self.connector(self.post_layernorm(x))

    return Tile().eval()


def onnx_file(folder: Path) -> Path:
    """The reference exported once, for both runtimes."""
    import torch

    file = folder / "tile.onnx"
    if not file.exists():
        example = torch.from_numpy(pixels(np.zeros((512, 512, 3), np.uint8)))
        torch.onnx.export(torch_module(folder), (example,), file, input_names=["pixels"], dynamo=True)
    return file


def onnxruntime(folder: Path) -> Callable:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = ort.InferenceSession(str(onnx_file(folder)), options)
    x = pixels(tile_of(folder))
    return lambda: session.run(None, {"pixels": x})[0][0]


def openvino(folder: Path) -> Callable:
    import openvino as ov

    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Core().compile_model(str(onnx_file(folder)), "CPU", config)
    x = pixels(tile_of(folder))
    return lambda: model(x)[0][0]


def matmul_jax(folder: Path) -> Callable:
    import jax

    x = jax.random.normal(jax.random.key(0), (MATMUL, MATMUL))
    product = jax.jit(lambda x: x @ x)
    return lambda: product(x).block_until_ready()


def matmul_torch(folder: Path) -> Callable:
    import torch

    x = torch.randn(MATMUL, MATMUL)
    return lambda: x @ x


def matmul_numpy(folder: Path) -> Callable:
    x = np.random.default_rng(0).normal(size=(MATMUL, MATMUL)).astype(np.float32)
    return lambda: x @ x


SYSTEMS: dict[str, Callable[[Path], Callable]] = {
    "multipatch_jax": ours,
    "multipatch_jax, XLA alone": lambda folder: ours(folder, attention="blocked"),
    "transformers, sdpa": lambda folder: reference(folder, "sdpa"),
    "transformers, eager": lambda folder: reference(folder, "eager"),
    "transformers, torch.compile": lambda folder: reference(folder, "sdpa", compiled=True),
    "onnxruntime": onnxruntime,
    "OpenVINO": openvino,
}
CEILING = {"matmul, XLA": matmul_jax, "matmul, torch": matmul_torch, "matmul, NumPy": matmul_numpy}


def tile_of(folder: Path) -> np.ndarray:
    return np.load(folder / "tile.npy")


def pixels(tile: np.ndarray) -> np.ndarray:
    return ((tile.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]


def keeping_tokens(name: str) -> Callable[[Path], Callable]:
    """The system, which leaves the tokens of its first run in the folder, to be compared."""

    def system(folder: Path) -> Callable:
        run = SYSTEMS[name](folder)
        np.save(folder / f"{name}.npy", np.asarray(run()))
        return run

    return system


def make_checkpoint(folder: Path) -> None:
    """SmolVLM-256M's tower and connector in transformers' layout, in a process of its own, as it loads torch."""
    code = (
        "import sys, dataclasses; from pathlib import Path\n"
        "import multipatch_jax as mp; import multipatch_reference as reference\n"
        "text = dataclasses.replace(mp.presets.SMOLVLM_256M.text, num_hidden_layers=1)\n"
        "config = dataclasses.replace(mp.presets.SMOLVLM_256M, text=text)\n"
        "reference.save_checkpoint(reference.reference_model(config), config, Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True, cwd=turns.ROOT, env=turns.environment())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--without-avx512", action="store_true", help="Linux, an Intel processor and a C compiler")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        systems = {name: keeping_tokens(name) for name in SYSTEMS} | CEILING
        return turns.work(systems, args.worker[0], Path(args.worker[1]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder)
        np.save(folder / "tile.npy", np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
        if args.without_avx512:
            os.environ["LD_PRELOAD"] = hide_avx512(folder)
            del SYSTEMS["transformers, torch.compile"]  # it asks /proc/cpuinfo, and so compiles for what is not there
        times = turns.take_turns("benchmarks.cpu", [*SYSTEMS, *CEILING], folder, args.rounds)
        tokens = {system: np.load(folder / f"{system}.npy") for system in SYSTEMS}
    report(times, tokens, "cpu_without_avx512" if args.without_avx512 else "cpu")


def hide_avx512(folder: Path) -> str:
    """What is to be preloaded."""
    library = folder / "hide_avx512.so"
    source = turns.ROOT / "benchmarks" / "hide_avx512.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return str(library)


def report(times: dict[str, list[float]], tokens: dict[str, np.ndarray], name: str) -> None:
    medians = {system: statistics.median(values) for system, values in times.items()}
    rates = {system: 2 * MATMUL**3 / medians[system] for system in CEILING}
    ceiling = max(rates.values())
    print(f"{'system':<34} {'s a tile':>8} {'ratio':>6} {'GFLOP/s':>8} {'of ceiling':>10} {'from sdpa':>10}")
    sdpa = tokens["transformers, sdpa"]
    for system, result in tokens.items():
        seconds, rate = medians[system], FLOPS / medians[system]
        error = np.linalg.norm(result - sdpa) / np.linalg.norm(sdpa)
        ratio = turns.ratio(times, system, "transformers, sdpa")
        print(f"{system:<34} {seconds:8.2f} {ratio:6.2f} {rate / 1e9:8.0f} {rate / ceiling:10.0%} {error:10.1e}")
    for system, rate in rates.items():
        print(f"{system:<34} {'':>8} {'':>6} {rate / 1e9:8.0f}")
    packages = "jax jaxlib flax torch transformers onnxruntime openvino numpy".split()
    turns.write_record(name, packages, seconds=times)


if __name__ == "__main__":
    main()
