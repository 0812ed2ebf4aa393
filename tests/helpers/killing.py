"""Kill a run over a corpus as a crash does: the process that drives it, and the actors that compute."""

import os
import signal
import subprocess
from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """The processes that a process has started, and those that these have started: {pid: command line}."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
    found, waiting = {}, [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, its in parents.items() if its == parent]
        found |= {child: commands[child] for child in children if child in commands}
        waiting += children
    return found


def actors_of(pid: int) -> list[int]:
    return [child for child, command in descendants(pid).items() if "MapWorker(MapBatches" in command]


def kill_run(driver: subprocess.Popen) -> int:
    """Kill -9 the driver and its actors; then whatever Ray has left running. The number of actors is returned."""
    others, actors = descendants(driver.pid), actors_of(driver.pid)
    driver.kill()
    for pid in [*actors, *others]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    driver.communicate()
    return len(actors)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
