"""Timing systems fairly on a shared machine: a process each, one turn after the other, medians and ratios."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAUSE = 0.3  # seconds before a turn: threads of some libraries go on spinning after their work, at the next one's cost
Systems = Mapping[str, Callable[[Path], Callable[[], object]]]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def work(systems: Systems, name: str, folder: Path) -> None:
    """A system's own process: a line on standard input is a turn, a line of seconds on standard output its answer."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not be taken for an answer
    run = systems[name](folder)
    run()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, file=answers, flush=True)


def take_turns(module: str, names: Iterable[str], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every turn of every system; `module` is run as `python -m MODULE --worker NAME FOLDER` for each."""
    workers = {}
    for name in names:
        command = [sys.executable, "-m", module, "--worker", name, str(folder)]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        if worker.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} did not get ready; run {' '.join(command)} to see why.")
        workers[name] = worker
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            time.sleep(PAUSE)
            print(file=worker.stdin, flush=True)
            times[name].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return times


def run_python(code: str, *arguments: str, **variables: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment() | variables
    )
    return done.stdout


def ratio(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """Median over the rounds of a system's seconds by another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def write_record(name: str, packages: Iterable[str], **measured: Any) -> None:
    """benchmarks/NAME.json: what was measured, with the versions and the machine that it was measured on."""
    record = measured | {
        "versions": {package: metadata.version(package) for package in packages},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    (ROOT / "benchmarks" / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
