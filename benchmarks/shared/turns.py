"""Times systems fairly on a shared machine.

They have processes of their own and take turns, and a ratio is of turns of one round.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from benchmarks.shared.processes import ROOT, environment

PAUSE = 0.3  # seconds before a turn: the threads of some libraries spin after their work, and slow the next system
Turn = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)
System = Callable[[Path], Turn]  # reads its inputs from a folder, and returns the function that takes one turn


def work(systems: Mapping[str, System], folder: Path | str, *names: str) -> None:
    """Runs systems in this process: a line on standard input names the one whose turn it is; prints its seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not be taken for an answer
    ready = {name: systems[name](Path(folder)) for name in names}
    for turn in ready.values():
        turn()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        ready[line.strip()]()
        print(time.perf_counter() - start, file=answers, flush=True)


class _Worker:
    """The process of some systems, as the process that asks for their turns sees it."""

    def __init__(self, names: Sequence[str], command: Sequence[str], variables: Mapping[str, str]):
        self._names, self._command, self._start = ", ".join(names), " ".join(command), time.perf_counter()
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

    def wait_until_ready(self) -> None:
        """Waits until every system of the process has had a turn, and says how long that took."""
        if self._answers.readline() != "ready\n":
            raise RuntimeError(f"{self._names} did not get ready; run {self._command} to see why.")
        print(f"ready after {time.perf_counter() - self._start:.0f} s: {self._names}", file=sys.stderr, flush=True)

    def turn(self, name: str) -> float:
        """Seconds of one turn."""
        print(name, file=self._questions, flush=True)
        return float(self._answers.readline())

    def close(self) -> None:
        """Ends the process."""
        self._questions.close()
        self._process.wait()


def take_turns(
    module: str,
    names: Iterable[str],
    folder: Path,
    rounds: int,
    together: Iterable[Sequence[str]] = (),
    side_by_side: bool = False,
) -> dict[str, list[float]]:
    """Seconds of every turn of every system.

    Args:
      module: the command; `python -m MODULE --worker FOLDER NAME...` must call `work`.
      names: of the systems, in the order of their turns.
      folder: holds the inputs.
      rounds: turns of each system.
      together: systems that share a process, where each would take long to start; the others have one each.
      side_by_side: whether the processes get ready at the same time, on a machine with cores for all of them.
    """
    names, shared = list(names), [tuple(group) for group in together]
    alone = [(name,) for name in names if not any(name in group for group in shared)]
    commands = {group: [sys.executable, "-m", module, "--worker", str(folder), *group] for group in shared + alone}
    workers = _start({group: (group, command, {}) for group, command in commands.items()}, side_by_side)
    return _turns({name: worker for group, worker in workers.items() for name in group}, names, rounds)


def take_turns_of(
    commands: Mapping[str, Sequence[str]], variables: Mapping[str, Mapping[str, str]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every turn of every system.

    Args:
      commands: of each system, in the order of their turns: what starts a process that calls `work`.
      variables: of each system: what its process has in its environment beside that of this checkout's processes.
      rounds: turns of each system.
    """
    workers = _start({name: ([name], command, variables.get(name, {})) for name, command in commands.items()})
    return _turns(workers, list(commands), rounds)


def _start(arguments: Mapping[Key, tuple[Any, ...]], side_by_side: bool = False) -> dict[Key, _Worker]:
    """The ready workers, each made with its arguments; they get ready one after another unless `side_by_side`."""
    workers: dict[Key, _Worker] = {}
    for key, own in arguments.items():
        workers[key] = _Worker(*own)
        if not side_by_side:
            workers[key].wait_until_ready()
    for worker in workers.values() if side_by_side else ():
        worker.wait_until_ready()
    return workers


def _turns(workers: Mapping[str, _Worker], names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in tqdm(range(rounds), unit=" rounds"):
        for name in names:
            time.sleep(PAUSE)
            times[name].append(workers[name].turn(name))
    for worker in set(workers.values()):
        worker.close()
    return times


def ratio(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """Divides the seconds of `name` by those of `other` in each round, and returns the median."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
