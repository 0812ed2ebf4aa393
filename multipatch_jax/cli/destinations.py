"""Check, before any work, that a command can write where it is told to, and that it replaces nothing by mistake."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from multipatch_jax.files import replace_file, require_parent

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check_picture(option: str, path: Path | None) -> None:
    """Raise a ValueError if an option's file, where it is given, has not the name of a picture."""
    if path and path.suffix.lower() not in PICTURES:
        raise ValueError(f"{option} writes {', '.join(PICTURES)}, got {path}.")


def check_files(outputs: Mapping[str, Path | None], inputs: Iterable[Path] = (), model: str | None = None) -> None:
    """Check the files that a command is to write. An older file is replaced, unless the command reads it.

    Args:
      outputs: {option: file}; None for an option that is not given.
      inputs: the files that the command reads.
      model: a model's folder or hub id. A file in the folder is not replaced either.

    Raises:
      ValueError: an output is an input, another output, a file of the model, a link or another special file, or it
        cannot be written.
      FileNotFoundError: its folder does not exist.
    """
    taken = {key: f"would replace the input {path}" for path in inputs for key in _keys(path)}
    for option, path in outputs.items():
        if path is None:
            continue
        with _errors(option):
            require_parent(path)
            _check_kind(option, path)
            keys = _keys(path)
            for key in keys & taken.keys():
                raise ValueError(f"{option} {path} {taken[key]}: choose another name.")
            if path.exists() and model and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(model)):
                raise ValueError(f"{option} {path} is a file in the model's folder: delete it or choose another name.")
            _try(path)
            taken |= dict.fromkeys(keys, f"is the file of {option} too")


def check_new_folder(name: str, path: Path) -> None:
    """Check that a folder, and those above it that are missing, can be made.

    Args:
      name: of the argument, for messages.

    Raises:
      FileExistsError: there is something of this name.
      FileNotFoundError: what is to hold it is no folder.
      ValueError: it cannot be written.
    """
    with _errors(name):
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists; delete it or choose another name.")
        missing, parent = [path.name], path.parent
        while not os.path.lexists(parent):
            missing, parent = [*missing, parent.name], parent.parent
        for part in missing:
            require_parent(parent / part)
            _try(parent / part)


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn an error of the operating system, whose message could hold a name of any length, into a ValueError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # our own
            raise
        raise ValueError(f"{name} cannot be written ({error.strerror}): {error.filename!s:.100}") from None


def _keys(path: Path) -> set[object]:
    """Return what two names of one file have in common: the path without links; of a file that exists, its number."""
    keys: set[object] = {os.path.realpath(path)}
    with contextlib.suppress(OSError):
        found = path.stat()
        keys.add((found.st_dev, found.st_ino))
    return keys


def _check_kind(option: str, path: Path) -> None:
    if not os.path.lexists(path):
        return
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise ValueError(f"{option} must not be a symbolic link, got {path}: give the file that it leads to.")
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device or pipe"
        raise ValueError(f"{option} must be a file, and {path} is a {kind}.")


def _try(path: Path) -> None:
    """Begin to write a file, and leave it as it was; raise an OSError if that does not work."""

    class Begun(Exception):
        pass

    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # the name may be too long
    with contextlib.suppress(Begun), replace_file(path):
        raise Begun
