"""Measures the seconds a tile of multipatch_jax and its peers on this CPU: `python -m benchmarks.cpu`.

Needs the `bench` extra. All systems run SmolVLM-256M's tower and connector in float32 on the same random weights and
the same tile. Each system has its own process and they take turns, one tile each, so that a change of the machine's
speed meets all of them; medians and ratios are compared. The ceiling is the best float32 matmul rate of XLA, torch and
NumPy, measured in the same turns. Prints a table and writes benchmarks/records/cpu.json.

`--without-avx512` hides those instructions from every system, on a machine that has them, and writes
benchmarks/records/cpu_without_avx512.json.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import ceiling, turns
from benchmarks.shared.avx512 import build_hider
from benchmarks.shared.checkpoint import make_checkpoint
from benchmarks.shared.flops import tile_flops
from benchmarks.shared.options import turns_parser
from benchmarks.shared.records import write_record
from benchmarks.shared.torch_tile import torch_module
from benchmarks.shared.turns import System, Turn

# ---------------------------------------------------------------------------------------------------------------------
# The systems. Each reads the checkpoint and the tile from a folder, and its turn returns the tile's tokens.


def ours(folder: Path, **settings: Any) -> Turn:
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder)
    compute, tile = mp.Compute(**settings), tile_of(folder)
    return lambda: np.asarray(mp.encode_tiles(params, tile[None], config=config, compute=compute))[0]


def reference(folder: Path, attention: str, compiled: bool = False) -> Turn:
    module, x = torch_module(folder, attention), pixels(tile_of(folder))
    import torch

    if compiled:
        module = torch.compile(module)

    def turn() -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x))[0].numpy()

    return turn


def onnx_file(folder: Path) -> Path:
    """Exports the reference once, for both runtimes."""
    import torch

    file = folder / "tile.onnx"
    if not file.exists():
        example = torch.from_numpy(pixels(np.zeros((512, 512, 3), np.uint8)))
        torch.onnx.export(torch_module(folder), (example,), file, input_names=["pixels"], dynamo=True)
    return file


def onnxruntime(folder: Path) -> Turn:
    import onnxruntime as ort  # pyright: ignore[reportMissingImports]  # only the `bench` extra installs it

    options = ort.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = ort.InferenceSession(str(onnx_file(folder)), options)
    x = pixels(tile_of(folder))
    return lambda: session.run(None, {"pixels": x})[0][0]


def openvino(folder: Path) -> Turn:
    import openvino as ov  # pyright: ignore[reportMissingImports]  # only the `bench` extra installs it

    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Core().compile_model(str(onnx_file(folder)), "CPU", config)
    x = pixels(tile_of(folder))
    return lambda: model(x)[0][0]


COMPILED = "transformers, torch.compile"
SYSTEMS: dict[str, System] = {
    "multipatch_jax": ours,
    "multipatch_jax, XLA alone": lambda folder: ours(folder, encoder="flax"),
    "transformers, sdpa": lambda folder: reference(folder, "sdpa"),
    "transformers, eager": lambda folder: reference(folder, "eager"),
    COMPILED: lambda folder: reference(folder, "sdpa", compiled=True),
    "onnxruntime": onnxruntime,
    "OpenVINO": openvino,
}


def tile_of(folder: Path) -> np.ndarray:
    return np.load(folder / "tile.npy")


def pixels(tile: np.ndarray) -> np.ndarray:
    """The tile as the reference takes it: normalised, channels first, in a batch of one."""
    return ((tile.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]


def keeping_tokens(name: str) -> System:
    """The system, which also saves the tokens of one turn in the folder, to be compared."""

    def system(folder: Path) -> Turn:
        turn = SYSTEMS[name](folder)
        np.save(folder / f"{name}.npy", np.asarray(turn()))
        return turn

    return system


# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = turns_parser(__doc__, rounds=9)
    parser.add_argument("--without-avx512", action="store_true", help="Linux, an Intel processor and a C compiler")
    args = parser.parse_args()
    if args.worker:
        return turns.work({name: keeping_tokens(name) for name in SYSTEMS} | ceiling.CPU, *args.worker)
    systems = list(SYSTEMS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder)
        np.save(folder / "tile.npy", np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
        if args.without_avx512:
            os.environ["LD_PRELOAD"] = build_hider(folder)
            systems.remove(COMPILED)  # it reads /proc/cpuinfo, and would compile for the hidden instructions
        times = turns.take_turns("benchmarks.cpu", [*systems, *ceiling.CPU], folder, args.rounds)
        tokens = {system: np.load(folder / f"{system}.npy") for system in systems}
    report(times, tokens)
    packages = "jax jaxlib flax torch transformers onnxruntime openvino numpy".split()
    write_record("cpu_without_avx512" if args.without_avx512 else "cpu", packages, seconds=times)


def report(times: dict[str, list[float]], tokens: dict[str, np.ndarray]) -> None:
    """Prints the table."""
    import multipatch_jax as mp  # after the turns: these two would slow them
    from multipatch_reference import distance

    flops = tile_flops(mp.presets.SMOLVLM_256M)
    medians = {system: statistics.median(values) for system, values in times.items()}
    rates = {system: ceiling.rate(ceiling.CPU_SIZE, medians[system]) for system in ceiling.CPU}
    best = max(rates.values())
    print(f"{'system':<34} {'s a tile':>8} {'ratio':>6} {'GFLOP/s':>8} {'of ceiling':>10} {'from sdpa':>10}")
    sdpa = tokens["transformers, sdpa"]
    for system, result in tokens.items():
        seconds, rate = medians[system], flops / medians[system]
        error = distance(result, sdpa)
        ratio = turns.ratio(times, system, "transformers, sdpa")
        print(f"{system:<34} {seconds:8.2f} {ratio:6.2f} {rate / 1e9:8.0f} {rate / best:10.0%} {error:10.1e}")
    for system, rate in rates.items():
        print(f"{system:<34} {'':>8} {'':>6} {rate / 1e9:8.0f}")


if __name__ == "__main__":
    main()
