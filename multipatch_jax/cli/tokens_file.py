"""Write tokens to a safetensors file one photograph after the other, so that few are in memory and none is lost.

A safetensors file begins with a header, which says where each array lies. Room for the longest header that there can be
is left at the beginning, the arrays follow as they are computed, and the header is written last; the format lets it end
in spaces.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

import multipatch_jax as mp
from multipatch_jax.cli.interrupts import interrupt_later
from multipatch_jax.files import replace_file
from multipatch_jax.image import TilePlan

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # NumPy's name -> the format's
LARGEST = 10**18  # longer in digits than any size, and any place in a file


class TokensFile:
    """A file of tokens that is not finished.

    Its arrays are `tokens_0`, `tokens_1`, ..., each numbered by the place of its photograph among those given. The
    metadata has "images", a JSON list with the key, the name and the plan of each array, and "failed", a JSON list with
    the number and the name of each photograph that has none.
    """

    def __init__(self, file: FileIO, names: Sequence[str], model: str):
        """Begin a file.

        Args:
          file: empty, and open for writing.
          names: of all photographs, in order.
          model: its name.
        """
        self._file, self._names = file, names
        self._metadata = {"model": _text(model), "multipatch_jax": mp.__version__}
        self._finished: list[tuple[dict[str, Any], dict[str, Any]]] = []  # (entry of "images", entry of the header)
        self._failed: list[dict[str, Any]] = []
        plan = {field.name: [LARGEST, LARGEST] for field in dataclasses.fields(TilePlan)}
        array = {"dtype": "BF16", "shape": [LARGEST, LARGEST], "data_offsets": [LARGEST, LARGEST]}
        longest = self._header([(self._image(index, plan), array) for index in range(len(names))])
        self._start = -(-(8 + len(longest)) // 8) * 8
        self._write(0, b" " * self._start)

    @property
    def count(self) -> int:
        """How many photographs it holds."""
        return len(self._finished)

    def append(self, index: int, plan: TilePlan, tokens: np.ndarray) -> None:
        """Write the tokens (N * T, D) of photograph number `index`."""
        data, begin = tokens.tobytes(), self._size()
        self._write(self._start + begin, data)
        offsets = [begin, begin + len(data)]
        array = {"dtype": DTYPES[tokens.dtype.name], "shape": tokens.shape, "data_offsets": offsets}
        self._finished.append((self._image(index, vars(plan)), array))

    def skip(self, index: int) -> None:
        """Note that photograph number `index` has no tokens."""
        self._failed.append({"index": index, "file": self._names[index]})

    def finish(self) -> None:
        """Write the header."""
        self._file.truncate(self._start + self._size())
        header = self._header(self._finished).ljust(self._start - 8)
        self._write(0, len(header).to_bytes(8, "little") + header)

    def _image(self, index: int, plan: dict[str, Any]) -> dict[str, Any]:
        return {"key": f"tokens_{index}", "file": self._names[index], **plan}

    def _size(self) -> int:
        """Return the number of bytes of the arrays."""
        return self._finished[-1][1]["data_offsets"][1] if self._finished else 0

    def _header(self, finished: list[tuple[dict[str, Any], dict[str, Any]]]) -> bytes:
        images = json.dumps([image for image, _ in finished])
        metadata = {"images": images, "failed": json.dumps(self._failed), **self._metadata}
        return json.dumps({"__metadata__": metadata, **{image["key"]: array for image, array in finished}}).encode()

    def _write(self, place: int, data: bytes) -> None:
        self._file.seek(place)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


@contextlib.contextmanager
def tokens_file(out: Path, names: Sequence[str], model: str) -> Iterator[TokensFile]:
    """Write a file of tokens atomically: `with tokens_file(...) as file:` gives a `TokensFile` to fill.

    If the block raises, Ctrl-C included, the photographs that are finished are written all the same, and the exception
    gets a note that says so.

    Args:
      out: the file. If no photograph is finished, nothing is written.
      names: of the photographs.
      model: its name.
    """
    stopped = None
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replace_file(out))
        file = TokensFile(stack.enter_context(open(temporary, "wb", buffering=0)), names, model)
        try:
            yield file
        except BaseException as error:
            if not file.count:
                raise
            error.add_note(f"the tokens of {file.count} of {len(names)} photographs are in {out}")
            stopped = error
        with interrupt_later(f"{out} is written"):
            file.finish()
            stack.close()
    if stopped is not None:
        raise stopped


def _text(name: str) -> str:
    """Return a name that is not UTF-8, as names of files may be, with escapes: the format holds only text."""
    return name.encode("utf-8", "backslashreplace").decode()
