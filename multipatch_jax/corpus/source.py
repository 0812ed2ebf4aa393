"""Read the compressed bytes of the images that rows of a manifest name, ahead of their turn."""

import collections
import concurrent.futures
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.fs

READERS = 8  # files that are read at a time, which hides the delay of a store in a cloud
AHEAD = 16  # files that are read, or being read, ahead of their turn


def is_address(path: str) -> bool:
    """Return whether a path is that of a store in a cloud, such as "gs://bucket/photo.jpg"."""
    return "://" in path


def read_sources(rows: Sequence[Mapping[str, Any]], base: str) -> Iterator[str | bytes | Exception]:
    """Yield, for each row in order, a path of this machine, the bytes of its image, or the error of reading it.

    A file that is an image by itself is not read here: whoever decodes the image reads it.

    Args:
      rows: of a manifest.
      base: the folder that relative paths start from.
    """
    with concurrent.futures.ThreadPoolExecutor(READERS, "multipatch-source") as pool:
        waiting: collections.deque[concurrent.futures.Future[str | bytes]] = collections.deque()
        left = iter(rows)
        while True:
            for row in left:
                waiting.append(pool.submit(_read, row, base))
                if len(waiting) == AHEAD:
                    break
            if not waiting:
                return
            future = waiting.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield future.result() if error is None else error


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
