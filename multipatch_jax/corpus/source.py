"""Read the compressed bytes of the images that rows of a manifest name, ahead of their turn."""

import collections
import concurrent.futures
import errno
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, TypeVar

import pyarrow.fs

THREADS = 8  # which hides the delay of a store in a cloud
PAUSES = (1, 5)  # seconds, before a file is read once more
# What is wrong with a file itself, wherever it lies; and what may pass, of a file of this machine.
OF_THE_IMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
PASSING = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN)
AHEAD = 16  # items that are done, or being done, ahead of their turn
Item = TypeVar("Item")
Done = TypeVar("Done")


class Unreachable(OSError):
    """A disk or store does not give a file now. This says nothing of the image, so the run ends and can go on later."""


def map_ahead(function: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done | Exception]:
    """Yield `function(item)`, or the exception that it raises, for each item in order; threads work ahead.

    `Unreachable` and `MemoryError` are raised and end the work.
    """
    left = iter(items)
    with concurrent.futures.ThreadPoolExecutor(THREADS, "multipatch-corpus") as pool:
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(left, AHEAD))
        while waiting:
            future = waiting.popleft()
            error = future.exception()
            if isinstance(error, (Unreachable, MemoryError)) or not isinstance(error, (Exception, NoneType)):
                raise error
            waiting.extend(pool.submit(function, item) for item in itertools.islice(left, 1))
            yield future.result() if error is None else error


def is_address(path: str) -> bool:
    """Return whether a path is that of a store in a cloud, such as "gs://bucket/photo.jpg"."""
    return "://" in path


def read_sources(rows: Iterable[Mapping[str, Any]], base: str) -> Iterator[bytes | Exception]:
    """Yield, for each row in order, the bytes of its image's file, or the error of reading it.

    Args:
      rows: of a manifest.
      base: the folder that relative paths start from.

    Raises:
      Unreachable: a file that should be there cannot be read, at the third try too.
    """
    return map_ahead(functools.partial(_read_again, base=base), rows)


def _read_again(row: Mapping[str, Any], base: str) -> bytes:
    pauses = list(PAUSES)
    while True:
        try:
            return _read(row, base)
        except OF_THE_IMAGE:
            raise
        except OSError as error:
            if not is_address(row["path"]) and error.errno not in PASSING:
                raise
            if not pauses:
                raise Unreachable(f"{row['path']} cannot be read: {error}") from error
        time.sleep(pauses.pop(0))


@functools.lru_cache
def _store(root: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of an address such as "s3://bucket/", and the path of it there. To make one takes time."""
    return pyarrow.fs.FileSystem.from_uri(root)


def _read(row: Mapping[str, Any], base: str) -> bytes:
    if row.get("bytes") is not None:
        return row["bytes"]
    path = row.get("path")
    if not path:
        raise ValueError("The row has neither a path nor bytes.")
    offset, size = row.get("offset"), row.get("size")
    if is_address(path):
        scheme, _, rest = path.partition("://")
        bucket, _, name = rest.partition("/")
        store, top = _store(f"{scheme}://{bucket}/")
        opened = store.open_input_file(f"{top.rstrip('/')}/{name}")
    else:
        opened = open(os.path.join(base, path), "rb")
    with opened as file:
        file.seek(offset or 0)
        data = file.read(size)
    if size is not None and len(data) != size:
        raise ValueError(f"{path} ends {size - len(data)} bytes too early: it has changed since the manifest was made.")
    return data
