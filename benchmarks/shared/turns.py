"""Times systems fairly on a shared machine: each has its own process, they take turns, and ratios are of one round."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.shared.processes import ROOT, environment

PAUSE = 0.3  # seconds before a turn: the threads of some libraries spin after their work, and slow the next system
Turn = Callable[[], object]
System = Callable[[Path], Turn]  # reads its inputs from a folder, and returns the function that takes one turn


def work(systems: Mapping[str, System], name: str, folder: Path | str) -> None:
    """Runs one system in its own process: takes a turn for each line on standard input, and prints its seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not be taken for an answer
    turn = systems[name](Path(folder))
    turn()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        turn()
        print(time.perf_counter() - start, file=answers, flush=True)


class _Worker:
    """The process of one system, as the process that asks for its turns sees it."""

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str]):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment() | dict(variables),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        if self._answers.readline() != "ready\n":
            raise RuntimeError(f"{name} did not get ready; run {' '.join(command)} to see why.")

    def turn(self) -> float:
        """Seconds of one turn."""
        print(file=self._questions, flush=True)
        return float(self._answers.readline())

    def close(self) -> None:
        """Ends the process."""
        self._questions.close()
        self._process.wait()


def take_turns(module: str, names: Iterable[str], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every turn of every system.

    Args:
      module: the command; `python -m MODULE --worker NAME FOLDER` must call `work`.
      names: of the systems, in the order of their turns.
      folder: holds the inputs.
      rounds: turns of each system.
    """
    commands = {name: [sys.executable, "-m", module, "--worker", name, str(folder)] for name in names}
    return take_turns_of(commands, {}, rounds)


def take_turns_of(
    commands: Mapping[str, Sequence[str]], variables: Mapping[str, Mapping[str, str]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every turn of every system.

    Args:
      commands: of each system, in the order of their turns: what starts a process that calls `work`.
      variables: of each system: what its process has in its environment beside that of this checkout's processes.
      rounds: turns of each system.
    """
    workers = {name: _Worker(name, command, variables.get(name, {})) for name, command in commands.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            time.sleep(PAUSE)
            times[name].append(worker.turn())
    for worker in workers.values():
        worker.close()
    return times


def ratio(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """Divides the seconds of `name` by those of `other` in each round, and returns the median."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
