"""Measures this library and its peers on this GPU: `python -m benchmarks.gpu`, or where the time goes: `--profile`.

Needs an NVIDIA GPU, JAX and torch with CUDA, and transformers. Takes some minutes, most of them for compiling. All run
SmolVLM-256M in bfloat16 on the same random weights:

* 17 tiles that lie on the GPU, through tower and connector; also inside the user's own `jit`;
* `encode_image` of 12 megapixels that lie on the GPU, and of a NumPy array; and a stream of such arrays;
* 900 tokens of text read and 32 written, for 1, 8 and 64 chats at a time;
* the best bfloat16 matmul rate of XLA and torch, which is the ceiling of the towers' rates.

The systems have processes of their own and take turns. Prints tables, with the distance of each tower's tokens from
float32 ones, and writes benchmarks/records/gpu.json.

`--profile` lists the kernels of the program of 17 tiles: how often each kind runs, its operations and bytes, the least
time at the chip's peak rates, and the time that it took. Without a GPU it compiles the program for a described H100 and
lists what that has; this needs the wheels that `benchmarks.aot` names. With a commit, it lists those of its program.

`--short` runs all systems once, small and on any machine, to see that the command works. It writes nothing.
"""

import importlib.util
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.shared import ceiling, gpu_answers, gpu_encoding, turns
from benchmarks.shared.flops import tile_flops
from benchmarks.shared.gpu_case import BATCHES, SHORT, Case, make_case
from benchmarks.shared.gpu_kernels import print_older_profile, print_profile
from benchmarks.shared.options import turns_parser
from benchmarks.shared.records import write_record
from benchmarks.shared.whole_checkpoint import whole_config

SYSTEMS = gpu_encoding.SYSTEMS | gpu_answers.SYSTEMS
PROCESSES = gpu_encoding.PROCESSES + gpu_answers.PROCESSES


def name_of_gpu() -> str | None:
    """The GPU's name; None without an NVIDIA GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> int:
    """0 when measured, 2 without a GPU."""
    options = turns_parser(__doc__, rounds=5)
    options.add_argument(
        "--profile", nargs="?", const="", metavar="COMMIT", help="list the kernels of the program of 17 tiles"
    )
    options.add_argument("--short", action="store_true", help="one small round on any machine: does it still work?")
    args = options.parse_args()
    if args.worker:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the processes share the GPU's memory
        turns.work(SYSTEMS, *args.worker)
        return 0
    gpu = name_of_gpu()
    if args.profile is not None:
        print_older_profile(args.profile) if args.profile else print_profile(gpu)
        return 0
    if importlib.util.find_spec("torch") is None or (gpu is None and not args.short):
        print("benchmarks.gpu needs an NVIDIA GPU, and torch with CUDA; --profile works without, --short with a CPU.")
        return 2
    case, rounds = (SHORT, 1) if args.short else (Case(), args.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_case(folder, case)
        times = turns.take_turns("benchmarks.gpu", SYSTEMS, folder, rounds, PROCESSES, side_by_side=gpu is not None)
        files = [gpu_encoding.FLOAT32, *(file for _, file in gpu_encoding.TOWERS.values())]
        tokens = {file: np.load(folder / f"{file}.npy") for file in files}
    if not args.short:
        write_record("gpu", "jax jaxlib flax torch transformers numpy".split(), seconds=times, gpu=gpu)
    report_towers(times, tokens, case, gpu or "this CPU")
    report_images(times, case)
    report_answers(times, case)
    return 0


def report_towers(times: dict[str, list[float]], tokens: dict[str, np.ndarray], case: Case, machine: str) -> None:
    """Prints the table of the towers."""
    from multipatch_reference import distance

    flops = case.tiles * tile_flops(whole_config(case.layers))  # imports JAX, which would slow the turns before
    medians = {name: statistics.median(seconds) / case.calls for name, seconds in times.items()}
    rates = {name: ceiling.rate(case.matmul, medians[name]) for name in gpu_encoding.CEILING}
    print(f"{machine}\n")
    print(f"{f'{case.tiles} tiles':<40} {'ms':>7} {'/ sdpa':>7} {'TFLOP/s':>8} {'of ceiling':>10} {'from float32':>12}")
    for name, (_, file) in gpu_encoding.TOWERS.items():
        rate, ratio = flops / medians[name], turns.ratio(times, name, gpu_encoding.SDPA)
        error = distance(tokens[file], tokens[gpu_encoding.FLOAT32])
        line = f"{medians[name] * 1e3:7.2f} {ratio:7.2f} {rate / 1e12:8.1f} {rate / max(rates.values()):10.0%}"
        print(f"{name:<40} {line} {error:12.2e}")
    for name, rate in rates.items():
        print(f"{name:<40} {'':>7} {'':>7} {rate / 1e12:8.1f}")


def report_images(times: dict[str, list[float]], case: Case) -> None:
    """Prints the table of whole images."""
    height, width = case.photo
    print(f"\n{f'{height} x {width} pixels':<40} {'ms':>7} {'images/s':>9}")
    for name in gpu_encoding.IMAGES:
        seconds = statistics.median(times[name]) / case.calls
        print(f"{name:<40} {seconds * 1e3:7.2f} {1 / seconds:9.1f}")


def report_answers(times: dict[str, list[float]], case: Case) -> None:
    """Prints the table of answers: tokens a second of all chats together, and the ratios to transformers' rates."""
    rows = [(name, batch) for name in (gpu_answers.OURS, gpu_answers.SDPA, gpu_answers.COMPILED) for batch in BATCHES]
    rates = {row: answer_rates(times, case, *row) for row in rows}
    head = f"{f'{case.prompt} tokens read, {case.written - 1} written':<40} {'chats':>6}"
    print(f"\n{head} {'prefill':>9} {'decode':>8} {'/ sdpa':>15} {'/ compiled':>15}")
    for (name, batch), own in rates.items():
        line = f"{name:<40} {batch:6d} {statistics.median(own[0]):9.0f} {statistics.median(own[1]):8.0f}"
        for peer in (gpu_answers.SDPA, gpu_answers.COMPILED):
            for mine, theirs in zip(own, rates[peer, batch], strict=True):
                line += f" {statistics.median(a / b for a, b in zip(mine, theirs, strict=True)):7.2f}"
        print(line)


def answer_rates(times: dict[str, list[float]], case: Case, name: str, batch: int) -> tuple[list[float], list[float]]:
    """Tokens a second of prefill and of decoding, in each round; decoding is what an answer takes more than prefill."""
    prefill, answer = (times[gpu_answers.turn_of(measure, batch, name)] for measure in gpu_answers.MEASURES)
    return (
        [batch * case.prompt / first for first in prefill],
        [batch * (case.written - 1) / (whole - first) for first, whole in zip(prefill, answer, strict=True)],
    )


if __name__ == "__main__":
    raise SystemExit(main())
