"""Python processes that run the code of this checkout."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """The variables of a process that imports this checkout and downloads nothing."""
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def run_python(*arguments: str, **variables: str) -> str:
    """Runs `python ARGUMENTS` with `variables` in its environment, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment() | variables,
    )
    return done.stdout
