"""Manifests: Parquet tables with a row for each image of a corpus.

| column | type | meaning |
|---|---|---|
| `id` | integer | names the image in the results; no two rows have the same |
| `path` | string | of the image, or of the tar file that holds it; a relative one starts from the manifest's folder |
| `bytes` | binary | the image's file itself, in place of `path` |
| `member` | string | the image's name in a tar file |
| `offset`, `size` | integer | where in the file of `path` the image is, in bytes; null for the whole file |

`id` is required, and so is `path` or `bytes`. Columns of other names are passed over.
"""

import dataclasses
import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import compute, dataset, parquet
from tqdm import tqdm

from multipatch_jax.files import replace_file

COLUMNS = {
    "id": pa.int64(),
    "path": pa.string(),
    "bytes": pa.binary(),
    "member": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
}
HEIC = (".heic", ".heif")
TAR = ".tar"
ROWS = 100_000  # that are written at a time


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A manifest that was checked.

    Attributes:
      path: the Parquet file, or a folder of Parquet files.
      files: the Parquet files, in the order of their names.
      base: the folder that relative paths start from.
      columns: those of `COLUMNS` that it has.
      ids: of all rows, sorted.
      digest: SHA-256 of the rows; in place of the column `bytes`, of the sizes of the Parquet files.
    """

    path: Path
    files: tuple[str, ...]
    base: str
    columns: tuple[str, ...]
    ids: np.ndarray
    digest: str


def is_manifest(source: Path) -> bool:
    """Return whether a path is a Parquet file, or a folder that holds some."""
    return source.suffix == ".parquet" or (source.is_dir() and bool(_parquet_files(source)))


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest. Images are not opened, and the column `bytes` is not read.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: it is not Parquet, lacks a column, has a column of another type, a row without an id, two rows with
        one id, or no rows.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no manifest {path}.")
    try:
        files = _parquet_files(path) if path.is_dir() else [path]
        table = dataset.dataset([str(file) for file in files], format="parquet")
        columns = _check_columns(path, table.schema)
        # Images within the manifest are not read to compare them: the sizes of its files stand for them.
        sizes = [file.stat().st_size for file in files] if "bytes" in columns else []
        digest, ids = hashlib.sha256(repr((columns, sizes)).encode()), []
        for batch in table.to_batches(columns=[name for name in columns if name != "bytes"]):
            if batch["id"].null_count:
                raise ValueError(f"{path} must have an id in every row, got one without.")
            ids.append(compute.cast(batch["id"], pa.int64()).to_numpy())
            for row in zip(*(batch[name].to_pylist() for name in batch.schema.names), strict=True):
                digest.update(repr(row).encode())
    except pa.ArrowException as error:
        raise ValueError(f"{path} must be a Parquet file with an id for each image: {error}") from None
    ordered = np.sort(np.concatenate(ids)) if ids else np.zeros(0, np.int64)
    if not len(ordered):
        raise ValueError(f"{path} must have at least one row, got none.")
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"{path} must have a different id in each row, got {twice[0]} more than once.")
    base = path if path.is_dir() else path.parent
    return Manifest(
        path, tuple(map(os.path.abspath, files)), os.path.abspath(base), columns, ordered, digest.hexdigest()
    )


def _parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder that are not hidden, as Spark and Ray have it: by a "." or "_"."""
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith((".", "_")))


def _check_columns(path: Path, schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of a manifest that we know, or raise a ValueError."""
    found = tuple(name for name in COLUMNS if name in schema.names)
    if "id" not in found or not {"path", "bytes"} & set(found):
        raise ValueError(
            f"{path} must have a column of integers `id`, and `path` or `bytes`, got the columns {schema.names}."
        )
    kinds = {pa.int64(): _is_int64, pa.string(): _is_text, pa.binary(): _is_binary}
    for name in found:
        kind = schema.field(name).type
        if not kinds[COLUMNS[name]](kind):
            raise ValueError(f"The column `{name}` of {path} must be {COLUMNS[name]}, got {kind}.")
    return found


def _is_int64(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) and kind != pa.uint64()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def make_manifest(source: str | Path, path: str | Path, *, progress: bool = False) -> int:
    """Write a manifest of the images in a folder, or in WebDataset's tar files.

    Images are files with the names of images, in folders within the folder too. Those in a tar file are found by their
    offsets, so that nothing is copied. Hidden files are left out. Ids count the images in the order of their names.

    Args:
      source: a folder of images, or of tar files, or one tar file.
      path: the Parquet file to write.
      progress: whether to show a bar that counts images.

    Returns:
      The number of images.

    Raises:
      FileNotFoundError: there is no such folder or file.
      ValueError: it holds no images, or a tar file is compressed or damaged.
    """
    source, path = Path(source), Path(path)
    if not source.exists():
        raise FileNotFoundError(f"There is no folder or tar file {source}.")
    has_tars = any(file.lower().endswith(TAR) for file in _files(source))
    names = ("path", "member", "offset", "size") if has_tars else ("path",)
    schema = pa.schema([("id", pa.int64()), *((name, COLUMNS[name]) for name in names)])
    count = 0
    with replace_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        rows: list[dict[str, Any]] = []
        for row in tqdm(_images(_files(source)), desc="manifest", unit=" images", disable=not progress):
            rows.append({"id": count, **dict(zip(names, row, strict=False))})
            count += 1
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if not count:
            raise ValueError(f"{source} must hold images, tar files of images, or a .parquet manifest, got none.")
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return count


def _images(files: Iterable[str]) -> Iterator[tuple[str, str | None, int | None, int | None]]:
    """Yield (path, member, offset, size) of each image among files and in tar files among them."""
    known = (*Image.registered_extensions(), *HEIC)
    for file in files:
        name = file.lower()
        if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
            raise ValueError(f"{file} must be a .tar that is not compressed, so that each image can be reached alone.")
        if name.endswith(TAR):
            for member in _members(file):
                if member.isfile() and member.name.lower().endswith(known):
                    yield file, member.name, member.offset_data, member.size
        elif name.endswith(known):
            yield file, None, None, None


def _files(source: Path) -> Iterator[str]:
    """Yield a file itself, or the files in a folder and in those within it, sorted, without hidden ones.

    Raises:
      ValueError: a name is not UTF-8, which a Parquet file cannot hold.
    """
    root = os.path.abspath(source)
    if not os.path.isdir(root):
        yield root
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ValueError(f"The names of files must be UTF-8, got {name!r} in {folder!r}: rename it.") from None
            yield os.path.join(folder, name)


def _members(file: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(file, "r:") as tar:
            yield from tar
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{file} is no tar file, or is damaged: {error}.") from None
    with open(file, "rb") as stream:
        stream.seek(end)
        if any(stream.read(tarfile.BLOCKSIZE)):  # `tarfile` takes a damaged header for the end
            raise ValueError(f"{file} is damaged: there is no header of a member at byte {end}.")
