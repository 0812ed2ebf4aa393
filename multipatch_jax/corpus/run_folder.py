"""The folder of a run: what the run is, its results, and which rows are done.

| name | content |
|---|---|
| `run.json` | what is computed, of which rows, with which weights: a run goes on only if all of it is the same |
| `results/` | Parquet files with a row for each image |
| `done/` | Ray's checkpoint: the ids whose results are written |
| `manifest.parquet` | the manifest, where the command made it from a folder of images |
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import dataset
from tqdm import tqdm

from multipatch_jax.checkpoint import needed_files
from multipatch_jax.corpus.error import CorpusError
from multipatch_jax.corpus.job import Job
from multipatch_jax.corpus.manifest import Manifest
from multipatch_jax.files import digest_of_file, read_json, replace_file, write_json

RUN, RESULTS, DONE, MADE = "run.json", "results", "done", "manifest.parquet"
OF_RAY = re.compile(r"(.+_\d{6})-\d+\.parquet")  # a file of results
PENDING, MAGIC = ".pending", b"PAR1"
# What may change between a run that was stopped and the one that goes on; weights are compared, not their place.
MAY_CHANGE = ("model", "revision", "batch_size")


@contextlib.contextmanager
def locked_folder(out: Path) -> Iterator[None]:
    """Make the folder of a run, if it is not there, and hold its lock.

    Raises:
      FileExistsError: it is a file, or a folder that holds something else.
      ValueError: another process holds the lock.
    """
    import fcntl

    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FileExistsError(f"{out} is a file, or is within one: give the folder of a run, or a new one.") from None
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"Another process writes into {out}: wait for its end, or choose another folder."
            ) from None
        # A process that was killed may have left hidden files.
        others = {path.name for path in out.iterdir() if not path.name.startswith(".")} - {MADE}
        if others and not (out / RUN).exists():
            (out / ".lock").unlink()
            raise FileExistsError(f"{out} holds other files and no {RUN}: give the folder of a run, or a new one.")
        try:
            recover(out)
            yield
        except BaseException:
            if new and not any((out / DONE).glob("*.parquet")):
                shutil.rmtree(out, ignore_errors=True)
            raise


def recover(out: Path) -> None:
    """Delete what a killed process, or a power cut, has left of results that are not whole, and of a manifest.

    Ray writes `done/NAME.pending.parquet`, then `results/NAME-0.parquet`, and then renames the first to
    `done/NAME.parquet`. What is not so far, or is cut off, is deleted, so that its images are done again.
    """
    for folder in out.glob(".manifest-*"):
        shutil.rmtree(folder, ignore_errors=True)
    results: dict[str, list[Path]] = {}
    for file in (out / RESULTS).glob("*.parquet"):
        if written := OF_RAY.fullmatch(file.name):
            results.setdefault(written[1], []).append(file)
    done = {file.name.removesuffix(".parquet"): file for file in (out / DONE).glob("*.parquet")}
    pending = {name.removesuffix(PENDING) for name in done if name.endswith(PENDING)}
    for name in {*results, *done, *pending}:
        files = [done.get(name), *results.get(name, ())]
        is_whole = len(files) > 1 and all(file is not None and _is_whole(file) for file in files)
        if name.endswith(PENDING) or name in pending or not is_whole:
            for file in files:
                if file is not None:
                    file.unlink(missing_ok=True)


def _is_whole(file: Path) -> bool:
    """Return whether a Parquet file has its end."""
    with file.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(stream.tell() - len(MAGIC), 0))
        return stream.read() == MAGIC


def claim_folder(out: Path, job: Job, manifest: Manifest, weights: str) -> None:
    """Write what the run is, or compare it with what an earlier run wrote.

    Raises:
      ValueError: the folder holds results of another run.
    """
    mine: dict[str, Any] = {
        **{name: value for name, value in dataclasses.asdict(job).items() if name not in MAY_CHANGE},
        "weights": weights,
        "images": len(manifest.ids),
        "manifest": manifest.digest,
    }
    if not (out / RUN).exists():
        with replace_file(out / RUN) as file:
            write_json(file, {**mine, "model": job.model, "revision": job.revision})
        return
    there = read_json(out / RUN)
    changed = [name for name, value in mine.items() if there.get(name) != value]
    if changed:
        said = ", ".join(f"{name} was {_short(there.get(name))} and is {_short(mine[name])}" for name in changed)
        raise ValueError(f"{out} holds the results of another run ({said}): choose another folder.")


def claim_device(out: Path, kind: str) -> None:
    """Write which kind of device computes, or compare it with the kind that began the run.

    Raises:
      ValueError: it is another. The dtype and the last bits of the results may depend on it.
    """
    there = read_json(out / RUN)
    if there.setdefault("device", kind) != kind:
        raise ValueError(
            f"The run in {out} was begun on a {there['device']}, and a {kind} may give other results: go on on a "
            f"{there['device']}, or choose another folder."
        )
    with replace_file(out / RUN) as file:
        write_json(file, there)


def _short(value: Any) -> str:
    return repr(value)[:40]


def digest_of(folder: Path, parts: Iterable[str], progress: bool) -> str:
    """Return the SHA-256 of the files that a model's parts are read from, with their names."""
    files = needed_files(folder, parts)
    digest = hashlib.sha256()
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, desc="checking the model", unit="B", unit_scale=True, disable=not progress) as bar:
        for path in files:
            digest.update(f"{path.relative_to(folder)} {digest_of_file(path)}\n".encode())
            bar.update(path.stat().st_size)
    return digest.hexdigest()


def ids_in(folder: Path) -> np.ndarray:
    """Return the ids in the Parquet files of a folder, sorted.

    While a run goes on, only those of `DONE` are whole. A file of `RESULTS` may be half written.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        return np.zeros(0, np.int64)
    table = dataset.dataset([str(file) for file in files], format="parquet").to_table(columns=["id"])
    return np.sort(table["id"].to_numpy())


def check_complete(out: Path, manifest: Manifest) -> None:
    """Raise a CorpusError unless the results have each id of the manifest once."""
    found = ids_in(out / RESULTS)
    if np.array_equal(found, manifest.ids):
        return
    wrong = {
        "are missing": np.setdiff1d(manifest.ids, found),
        "are not in the manifest": np.setdiff1d(found, manifest.ids),
        "are there twice": found[1:][found[1:] == found[:-1]],
    }
    said = "; ".join(f"{len(ids)} ids {what}, the first is {ids[0]}" for what, ids in wrong.items() if len(ids))
    raise CorpusError(
        f"{out / RESULTS} must have each id of the manifest once, and {said}: take files away that the run has not "
        f"written, and give the same command again, which does missing ones again."
    )


def count_errors(out: Path) -> int:
    """Return how many rows of the results have an error."""
    table = dataset.dataset(str(out / RESULTS), format="parquet")
    return table.count_rows(filter=dataset.field("error").is_valid())
