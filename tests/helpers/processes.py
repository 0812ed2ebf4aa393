"""Run Python in a process of its own, with this checkout on its path."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.project import ROOT

# Ray gives its actors a low priority, and on a busy machine they would hardly run beside other tests.
FOR_RAY = {"JAX_PLATFORMS": "cpu", "RAY_worker_niceness": "0"}


def environment(changes: dict[str, str] | None = None) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path} | (changes or {})


def many_devices(count: int) -> dict[str, str]:
    """What to change in the environment so that JAX shows the CPU as so many devices."""
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def run_python(
    *arguments: object, cwd: Path | None = None, changes: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs to the end. The caller looks at the return code."""
    command, env = [sys.executable, *map(str, arguments)], environment(changes)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def python_output(*arguments: object, cwd: Path | None = None, changes: dict[str, str] | None = None) -> str:
    """Runs to the end, asserts success, and returns what was printed."""
    done = run_python(*arguments, cwd=cwd, changes=changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start_python(*arguments: object, changes: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts, and does not wait. Standard error goes to `stdout` too."""
    command, env = [sys.executable, *map(str, arguments)], environment(changes)
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
