"""Read and write JSON, digest files, and write files and folders atomically.

An atomic write goes to a temporary name in the same folder (".NAME.partial-..."), and the finished file or folder is
renamed at the end. So nobody ever sees a half-written one, even if the process is killed. What a killed process left is
deleted by the next write of the same name.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LARGEST_JSON = 32_000_000  # bytes; the longest that models have are some millions
POINTER = b"version https://git-lfs.github.com/spec/"  # how the text of a git-lfs pointer begins


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is too large, a git-lfs pointer, not valid JSON, or no JSON object; the message names it.
    """
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a JSON file may have at most {LARGEST_JSON}.")
    refuse_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:  # of the encoding, of the syntax, or of a number with thousands of digits
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def refuse_pointer(path: Path) -> None:
    """Raise a ValueError if a file is what git leaves in a large file's place until git-lfs has fetched it."""
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder, or download it."
            )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented by two spaces, to `path`. This write is not atomic."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_path(name: str, value: Any, what: str = "the path of a file or folder") -> Path:
    """Return `value`, a string or path, as a `Path`.

    Args:
      name: name of the argument, for the error message.
      what: what the argument must be, for the error message.

    Raises:
      ValueError: it is something else, empty, or holds a NUL character.
    """
    if isinstance(value, (str, os.PathLike)) and str(value) and "\0" not in str(value):
        return Path(value)
    found = repr(value) if value is None or isinstance(value, str) else type(value).__name__
    raise ValueError(f"{name} must be {what}, got {found}.")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder atomically: `with new_folder(path) as folder:` gives an empty temporary folder to fill.

    At the end of the block the temporary folder is renamed to `path`; if the block raises, it is deleted. Missing
    parents of `path` are created. The folder and all that is in it get the modes that the umask gives new ones.

    Raises:
      FileExistsError: `path` exists already, or is within a file.
    """
    exists = FileExistsError(f"{path} exists; delete it or choose another name.")
    if os.path.lexists(path):
        raise exists
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FileExistsError(f"{path.parent} is a file, or is within one; choose another folder.") from None
    with _temporary(path, os.mkdir) as (temporary, handle):
        yield temporary
        _set_modes(handle)
        try:
            temporary.rename(path)
        except OSError as error:
            raise exists if os.path.lexists(path) else error from None  # another process made it meanwhile


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write or overwrite a file atomically: `with replace_file(path) as file:` gives the path of a temporary file.

    The temporary file is empty and has the suffix of `path`. At the end of the block it is renamed to `path`, in place
    of an older file; if the block raises, it is deleted and the older file stays. The file gets the mode of the older
    file, or the one that the umask gives a new file.

    Raises:
      FileNotFoundError: the folder of `path` does not exist.
    """
    require_parent(path)
    mode = path.stat().st_mode & 0o777 if path.is_file() else None

    def create(temporary: Path) -> None:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))

    with _temporary(path, create, path.suffix) as (temporary, handle):
        yield temporary
        if mode is not None:
            os.fchmod(handle, mode)
        temporary.replace(path)


@contextlib.contextmanager
def _temporary(path: Path, create: Callable[[Path], None], suffix: str = "") -> Iterator[tuple[Path, int]]:
    """Give (path, descriptor) of a new file or folder beside `path`, and delete it at the end if it has this name yet.

    Its writer holds a lock on it. One that is not locked was left by a writer that was killed, and the next writer of
    `path` deletes it.
    """
    prefix = f".{path.name[:50]}.partial-"  # a long name must not become too long
    leftover = re.compile(re.escape(prefix) + "[0-9a-f]{16}" + re.escape(suffix))
    for entry in path.parent.iterdir():
        if leftover.fullmatch(entry.name):
            with contextlib.suppress(OSError), _locked(entry):
                _delete(entry)
    with contextlib.ExitStack() as stack:
        while True:
            temporary = path.parent / f"{prefix}{secrets.token_hex(8)}{suffix}"
            create(temporary)
            # Another writer may take it for a leftover before it is locked.
            with contextlib.suppress(FileNotFoundError):
                handle = stack.enter_context(_locked(temporary, wait=True))
                break
        stack.callback(_delete, temporary)
        yield temporary, handle


@contextlib.contextmanager
def _locked(path: Path, wait: bool = False) -> Iterator[int]:
    """Give the descriptor of a file or folder, and hold its lock.

    Raises:
      FileNotFoundError: it is not there any more.
      OSError: it is a link, or with `wait` False, another process holds the lock or the file system has no locks.
    """
    import fcntl  # not on Windows, where what only reads can be used

    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                raise
        if not os.path.samestat(os.fstat(handle), path.lstat()):
            raise FileNotFoundError(path)
        yield handle
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _set_modes(folder: int) -> None:
    """Give all that is in a folder (a descriptor) the folder's own mode, and files the same without "executable".

    Links are not followed, not even one that is put in a file's place meanwhile.
    """
    wanted = os.fstat(folder).st_mode & 0o777
    for _, _, files, parent in os.fwalk(".", dir_fd=folder):
        os.fchmod(parent, os.fstat(parent).st_mode & 0o7000 | wanted)
        for name in files:
            with contextlib.suppress(OSError):  # a link
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
                try:
                    os.fchmod(file, wanted & 0o666)
                finally:
                    os.close(file)


def require_parent(path: Path) -> None:
    """Check that the folder which `path` is to be written into exists; raise a FileNotFoundError otherwise."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")
