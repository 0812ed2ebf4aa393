"""What commands that read a model share: the option of its revision, and how its folder is found."""

import argparse
from collections.abc import Iterable
from pathlib import Path


def add_revision(parser: argparse.ArgumentParser) -> None:
    """Add the option `--revision`."""
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id (default: main)")


def find_model(name: str, revision: str | None = None, parts: Iterable[str] = ("vision", "connector")) -> Path:
    """Return a model's folder, downloaded if `name` is a hub id.

    Raises:
      ValueError: `name` is a folder, which has no revisions.
      FileNotFoundError: it is neither, or cannot be downloaded.
    """
    from multipatch_jax.checkpoint import find_folder, local_folder  # slow to import

    if revision is not None and local_folder(name):
        raise ValueError(f"--revision is for a hub id, and {name} is a folder: leave the option out.")
    return find_folder(name, parts, revision=revision)
