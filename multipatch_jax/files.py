"""Read and write JSON, and write files and folders atomically.

An atomic write goes to a temporary name in the same folder, and the finished file or folder is renamed at the end. So
nobody ever sees a half-written one, even if the process is killed.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
      ValueError: the file is not valid JSON, or holds no object; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {str(error) or type(error).__name__}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented by two spaces, to `path`. This write is not atomic."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder atomically: `with new_folder(path) as folder:` gives an empty temporary folder to fill.

    At the end of the block the temporary folder is renamed to `path`; if the block raises, it is deleted. Missing
    parents of `path` are created.

    Raises:
      FileExistsError: `path` exists already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; delete it or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes folders that only the owner can read
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write or overwrite a file atomically: `with replace_file(path) as file:` gives the path of a temporary file.

    The temporary file is empty and has the suffix of `path`. At the end of the block it is renamed to `path`, in place
    of an older file; if the block raises, it is deleted and the older file stays.

    Raises:
      FileNotFoundError: the folder of `path` does not exist.
    """
    require_parent(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o644)  # mkstemp makes files that only the owner can read
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def require_parent(path: Path) -> None:
    """Check that the folder which `path` is to be written into exists; raise a FileNotFoundError otherwise."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")
