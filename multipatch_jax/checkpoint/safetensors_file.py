"""Where the tensors of a safetensors file lie, from its header, and reading one without the others."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from multipatch_jax.checkpoint.error import CheckpointError
from multipatch_jax.files import LARGEST_JSON, refuse_pointer

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}


class Stored(NamedTuple):
    """Where one tensor lies: its name, file, safetensors dtype ("F32"), shape, and offset from the file's start."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """Return the tensor as a read-only memory map of its own.

        The map's pages are released with the array, so reading tensor after tensor does not fill the memory.
        """
        if 0 in self.shape:  # an empty range cannot be mapped
            return np.empty(self.shape, DTYPES[self.dtype])
        return np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)


def read_header(file: Path) -> dict[str, Stored]:
    """Return {stored name: place} for every tensor of a safetensors file, from its header alone.

    The safetensors library opens the file too, and checks that header and file size agree.

    Raises:
      CheckpointError: the file is missing, a git-lfs pointer, truncated or damaged, or names a tensor twice.
    """
    from safetensors import SafetensorError, safe_open

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("it names a tensor twice")
        return entries

    try:
        refuse_pointer(file)
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > LARGEST_JSON:
                raise ValueError(f"its header has {size} bytes, of at most {LARGEST_JSON}")
            with safe_open(file, framework="numpy"):
                pass
            entries = json.loads(stream.read(size), object_pairs_hook=unique)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}.") from error
    entries.pop("__metadata__", None)
    return {
        name: Stored(name, file, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in entries.items()
    }
