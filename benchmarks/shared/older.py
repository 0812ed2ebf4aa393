"""An older commit of this repository as a folder whose code can run beside this checkout's."""

import importlib.machinery
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.shared.processes import ROOT, environment


def older_checkout(commit: str, folder: Path) -> Path:
    """Writes the files of a commit into a folder, builds its compiled encoder there, and returns the folder.

    Raises:
      ValueError: git knows no such commit, its setup.py failed, or it built other files than this checkout has.
    """
    extract(commit, folder)
    build(folder)
    return folder


def variables_of(checkout: Path) -> dict[str, str]:
    """What a process needs in its environment to import a checkout's package on a CPU, whatever is installed."""
    return {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}


def run_with(checkout: Path, script: Path, *arguments: str | Path) -> str:
    """Runs a script of this checkout in a process that imports another checkout's package; returns what it prints.

    Raises:
      CalledProcessError: the script failed; it has printed why.
    """
    command = [sys.executable, "-P", script, *arguments]
    variables = environment() | variables_of(checkout)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=checkout, env=variables)
    return done.stdout


def extract(commit: str, folder: Path, *paths: str) -> None:
    """Writes the files of a commit into a folder, all of them or those of `paths`.

    Raises:
      ValueError: git knows no such commit.
    """
    archive = folder.with_suffix(".tar")
    done = subprocess.run(
        ["git", "archive", "--format=tar", "-o", archive, commit, *paths], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"Expected a commit of this repository, got {commit!r}: {done.stderr.strip()}")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")


def build(folder: Path) -> None:
    """Builds the compiled encoder of a checkout, in place.

    Raises:
      ValueError: setup.py failed, or it built other files than this checkout has.
    """
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise ValueError(f"setup.py failed in the old commit:\n{done.stdout}")
    if builds(folder) != builds(ROOT):
        raise ValueError(
            f"The compiled encoder was built as {builds(folder)} in the old commit and as {builds(ROOT)} here; run "
            "`python setup.py build_ext --inplace` here, with the same compiler."
        )


def builds(folder: Path) -> list[str]:
    """Names of the compiled encoder's builds in a checkout, of those that this Python would load."""
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    files = (folder / "multipatch_jax").rglob("_encoder_*")
    return sorted({path.name.partition(".")[0] for path in files if path.name.endswith(suffixes)})
