"""The folders of a run's checkpoints: which are whole, and how those are deleted that a killed process left.

A checkpoint that is not kept is first moved to `.deleted`, so that a kill while it is deleted leaves no half of it
among the others.
"""

import json
import shutil
from pathlib import Path

from multipatch_jax.checkpoint import CheckpointError
from multipatch_jax.files import read_json

DELETED = ".deleted"  # a folder within the run's
# Items of a checkpoint, and files that each has whatever it holds.
ITEMS = {
    "params": ("_METADATA", "manifest.ocdbt"),
    "state": ("_METADATA", "manifest.ocdbt"),
    "run": ("metadata",),
    "metrics": ("metrics",),
}
ORBAX = {"_CHECKPOINT_METADATA", "commit_success.txt", "descriptor"}  # Orbax's own files beside the items


def clean_run(folder: Path) -> None:
    """Delete halves of checkpoints, which a process left that was killed while it deleted them.

    Raises:
      CheckpointError: a folder with a number for its name is neither a whole checkpoint of a run nor surely the rest of
        one, or the metrics of a checkpoint cannot be read. Nothing is deleted then.
    """
    steps = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    halves = [path for path in steps if not _is_whole(path)]
    for path in steps:
        if path not in halves:
            _check_metrics(path / "metrics" / "metrics")
    for path in halves:
        if not _is_half(path):
            raise CheckpointError(
                f"{path} is no checkpoint of a run, and cannot be kept beside a run's checkpoints: give the run a "
                f"folder of its own, or move this one away."
            )
    for path in halves:
        shutil.rmtree(path)
    delete_moved(folder)


def delete_moved(folder: Path) -> None:
    """Delete the checkpoints that were moved to `DELETED`."""
    if (folder / DELETED).is_dir():
        for path in (folder / DELETED).iterdir():
            shutil.rmtree(path, ignore_errors=True)


def _is_whole(step: Path) -> bool:
    return all((step / item / file).is_file() for item, files in ITEMS.items() for file in files)


def _check_metrics(file: Path) -> None:
    """Raise a CheckpointError unless a file holds names and numbers. All are read when a run is opened."""
    try:
        metrics = read_json(file)
    except ValueError as error:
        raise CheckpointError(f"{error} Delete the folder of this checkpoint.") from None
    if not all(isinstance(value, (int, float)) for value in metrics.values()):
        raise CheckpointError(f"{file} must hold names and numbers. Delete the folder of this checkpoint.")


def _is_half(step: Path) -> bool:
    """Return whether a folder that is not whole holds nothing but what a checkpoint of a run has."""
    if not {path.name for path in step.iterdir()} <= ITEMS.keys() | ORBAX:
        return False
    try:
        described = json.loads((step / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))["item_handlers"]
        return set(described) == set(ITEMS)
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
