"""A change that stops the programs from compiling for a TPU fails here; `python -m benchmarks.aot` looks closer."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="TPU's compiler, libtpu, is for Linux alone")
def test_programs_compile_for_a_tpu():
    command = [sys.executable, "-m", "benchmarks.aot", "--short"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "tpu_custom_call, no buffer of scores" in lines[0]
    assert "no collective" in lines[1]
