"""Read the compressed bytes of the images that rows of a manifest name, ahead of their turn."""

import collections
import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow.fs

THREADS = 8  # which hides the delay of a store in a cloud
AHEAD = 16  # items that are done, or being done, ahead of their turn
Item = TypeVar("Item")
Done = TypeVar("Done")


def map_ahead(function: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done | Exception]:
    """Yield `function(item)`, or the exception that it raises, for each item in order; threads work ahead."""
    left = iter(items)
    with concurrent.futures.ThreadPoolExecutor(THREADS, "multipatch-corpus") as pool:
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(left, AHEAD))
        while waiting:
            future = waiting.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            waiting.extend(pool.submit(function, item) for item in itertools.islice(left, 1))
            yield future.result() if error is None else error


def is_address(path: str) -> bool:
    """Return whether a path is that of a store in a cloud, such as "gs://bucket/photo.jpg"."""
    return "://" in path


def read_sources(rows: Iterable[Mapping[str, Any]], base: str) -> Iterator[str | bytes | Exception]:
    """Yield, for each row in order, a path of this machine, the bytes of its image, or the error of reading it.

    A file that is an image by itself is not read here: whoever decodes the image reads it.

    Args:
      rows: of a manifest.
      base: the folder that relative paths start from.
    """
    return map_ahead(functools.partial(_read, base=base), rows)


def _read(row: Mapping[str, Any], base: str) -> str | bytes:
    if row.get("bytes") is not None:
        return row["bytes"]
    path = row.get("path")
    if not path:
        raise ValueError("The row has neither a path nor bytes.")
    offset, size = row.get("offset"), row.get("size")
    path = path if is_address(path) else os.path.join(base, path)
    if offset is None and not is_address(path):
        return path
    store, path = pyarrow.fs.FileSystem.from_uri(path) if is_address(path) else (pyarrow.fs.LocalFileSystem(), path)
    with store.open_input_file(path) as file:
        file.seek(offset or 0)
        data = file.read(size)
    if size is not None and len(data) != size:
        raise ValueError(f"{path} ends {size - len(data)} bytes too early: it has changed since the manifest was made.")
    return data
