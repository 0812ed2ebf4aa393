"""Measures the seconds a tile of multipatch_jax and its peers on this CPU: `python -m benchmarks.cpu`.

Needs the `bench` extra. All systems run SmolVLM-256M's tower and connector in float32 on the same random weights and
the same tile. Each system has its own process and they take turns, one tile each, so that a change of the machine's
speed meets all of them; medians and ratios are compared. The ceiling is the best float32 matmul rate of XLA, torch and
NumPy, measured in the same turns. Prints a table and writes benchmarks/records/cpu.json.

`--dtype bfloat16` measures the systems in bfloat16, beside the first and transformers in float32, and writes
benchmarks/records/cpu_bfloat16.json:

* The weights are rounded to bfloat16 first, as the published ones are, so that every system has the same ones.
* "from float32" is how far the tokens are from those of transformers, sdpa, in float32; "x sdpa" divides that by the
  error of transformers' own sdpa in bfloat16.
* OpenVINO converts the float32 graph itself. onnxruntime stays in float32: its CPU provider runs no bfloat16 graph.
* The ceiling is the best bfloat16 matmul rate of XLA and torch, for the rows in float32 too.

`--without-avx512` hides those instructions from every system, on a machine that has them, and writes
benchmarks/records/cpu_without_avx512.json, or cpu_bfloat16_without_avx512.json.
"""

import dataclasses
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


def ours(folder: Path, dtype: str = "float32", **settings: Any) -> Turn:
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder, dtype=dtype)
    compute, tile = mp.Compute(**settings), tile_of(folder)
    return lambda: np.asarray(mp.encode_tiles(params, tile[None], config=config, compute=compute))[0]


def reference(folder: Path, attention: str, dtype: str = "float32", compiled: bool = False) -> Turn:
    module = torch_module(folder, attention, dtype)
    import torch

    x = torch.from_numpy(pixels(tile_of(folder))).to(getattr(torch, dtype))
    if compiled:
        module = torch.compile(module)

    def turn() -> np.ndarray:
        with torch.inference_mode():
            return module(x)[0].float().numpy()

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


def openvino(folder: Path, precision: str = "f32") -> Turn:
    import openvino as ov  # pyright: ignore[reportMissingImports]  # only the `bench` extra installs it

    config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    model = ov.Core().compile_model(str(onnx_file(folder)), "CPU", config)
    x = pixels(tile_of(folder))
    return lambda: model(x)[0][0]


COMPILED = "transformers, torch.compile"  # the beginning of its names
FLOAT32: dict[str, System] = {
    "multipatch_jax": ours,
    "multipatch_jax, XLA alone": lambda folder: ours(folder, encoder="flax"),
    "transformers, sdpa": lambda folder: reference(folder, "sdpa"),
    "transformers, eager": lambda folder: reference(folder, "eager"),
    COMPILED: lambda folder: reference(folder, "sdpa", compiled=True),
    "onnxruntime": onnxruntime,
    "OpenVINO": openvino,
}
BFLOAT16: dict[str, System] = {
    "multipatch_jax, bfloat16": lambda folder: ours(folder, "bfloat16"),
    "multipatch_jax, XLA alone, bfloat16": lambda folder: ours(folder, "bfloat16", encoder="flax"),
    "multipatch_jax, float32": ours,
    "transformers, sdpa, bfloat16": lambda folder: reference(folder, "sdpa", "bfloat16"),
    "transformers, eager, bfloat16": lambda folder: reference(folder, "eager", "bfloat16"),
    f"{COMPILED}, bfloat16": lambda folder: reference(folder, "sdpa", "bfloat16", compiled=True),
    "transformers, sdpa, float32": lambda folder: reference(folder, "sdpa"),
    "onnxruntime, float32": onnxruntime,
    "OpenVINO, bfloat16": lambda folder: openvino(folder, "bf16"),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """What is measured with one `--dtype`.

    Attributes:
      record: the name of its file.
      systems: the rows.
      ceilings: the matmuls.
      sdpa: the row whose seconds the others are divided by.
      truth: the row in float32 that the others' tokens are compared with.
      pairs: rows whose ratio is printed below the table.
    """

    record: str
    systems: dict[str, System]
    ceilings: dict[str, System]
    sdpa: str
    truth: str
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def is_float32(self) -> bool:
        """Whether all rows are in float32."""
        return self.sdpa == self.truth


TABLES = {
    "float32": Table("cpu", FLOAT32, ceiling.CPU, "transformers, sdpa", "transformers, sdpa"),
    "bfloat16": Table(
        "cpu_bfloat16",
        BFLOAT16,
        ceiling.CPU_BFLOAT16,
        "transformers, sdpa, bfloat16",
        "transformers, sdpa, float32",
        (
            ("multipatch_jax, bfloat16", "multipatch_jax, float32"),
            ("multipatch_jax, bfloat16", "OpenVINO, bfloat16"),
        ),
    ),
}


def tile_of(folder: Path) -> np.ndarray:
    return np.load(folder / "tile.npy")


def pixels(tile: np.ndarray) -> np.ndarray:
    """The tile as the reference takes it: normalised, channels first, in a batch of one."""
    return ((tile.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]


def keeping_tokens(name: str, start: System) -> System:
    """The system, which also saves the tokens of one turn in the folder, in float32, to be compared."""

    def system(folder: Path) -> Turn:
        turn = start(folder)
        np.save(folder / f"{name}.npy", np.asarray(turn(), np.float32))
        return turn

    return system


# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = turns_parser(__doc__, rounds=9)
    parser.add_argument("--dtype", choices=TABLES, default="float32")
    parser.add_argument("--without-avx512", action="store_true", help="Linux, an Intel processor and a C compiler")
    args = parser.parse_args()
    if args.worker:
        systems = {name: keeping_tokens(name, start) for name, start in (FLOAT32 | BFLOAT16).items()}
        return turns.work(systems | ceiling.CPU | ceiling.CPU_BFLOAT16, *args.worker)
    table = TABLES[args.dtype]
    systems, record = list(table.systems), table.record
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder, dtype=args.dtype)
        np.save(folder / "tile.npy", np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
        if args.without_avx512:
            os.environ["LD_PRELOAD"] = build_hider(folder)
            record += "_without_avx512"
            # It reads /proc/cpuinfo, and would compile for the hidden instructions.
            systems = [system for system in systems if not system.startswith(COMPILED)]
        times = turns.take_turns("benchmarks.cpu", [*systems, *table.ceilings], folder, args.rounds)
        tokens = {system: np.load(folder / f"{system}.npy") for system in systems}
    distances = report(table, times, tokens)
    packages = "jax jaxlib flax torch transformers onnxruntime openvino numpy".split()
    write_record(record, packages, seconds=times, distances=distances)


def report(table: Table, times: dict[str, list[float]], tokens: dict[str, np.ndarray]) -> dict[str, float]:
    """Prints the table, and returns how far each system's tokens are from the truth."""
    import multipatch_jax as mp  # after the turns: these two would slow them
    from multipatch_reference import distance

    flops = tile_flops(mp.presets.SMOLVLM_256M)
    medians = {system: statistics.median(values) for system, values in times.items()}
    rates = {system: ceiling.rate(ceiling.CPU_SIZE, medians[system]) for system in table.ceilings}
    best = max(rates.values())
    distances = {system: distance(result, tokens[table.truth]) for system, result in tokens.items()}
    errors = f"{'from sdpa':>10}" if table.is_float32 else f"{'from float32':>12} {'x sdpa':>6}"
    print(f"{'system':<38} {'s a tile':>8} {'ratio':>6} {'GFLOP/s':>8} {'of ceiling':>10} {errors}")
    for system, error in distances.items():
        seconds, rate = medians[system], flops / medians[system]
        ratio = turns.ratio(times, system, table.sdpa)
        errors = f"{error:10.1e}" if table.is_float32 else f"{error:12.1e} {error / distances[table.sdpa]:6.2f}"
        print(f"{system:<38} {seconds:8.2f} {ratio:6.2f} {rate / 1e9:8.0f} {rate / best:10.0%} {errors}")
    for system, rate in rates.items():
        print(f"{system:<38} {'':>8} {'':>6} {rate / 1e9:8.0f}")
    for system, other in table.pairs:
        print(f"{system} / {other}: {turns.ratio(times, system, other):.2f}")
    return distances


if __name__ == "__main__":
    main()
