"""Corpora for tests: photographs and pages of many sizes, with some files that are no images."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tests.helpers.image_files import png_of_size

BROKEN = (b"", b"no image", png_of_size(30_000, 30_000))


def picture(rng: np.random.Generator, largest: int = 200) -> bytes:
    """A PNG of random colours, of a random size."""
    height, width = rng.integers(8, largest, 2)
    file = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    small.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(file, "png", compress_level=1)
    return file.getvalue()


def make_corpus(path: Path, number: int, bad_every: int = 50, seed: int = 0) -> tuple[dict[int, bytes], set[int]]:
    """Writes a manifest with bytes; returns {id: file} and the ids of the bad ones. Ids have gaps and no order."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(number * 10)[:number]
    bad = {int(one) for one in ids[bad_every // 2 :: bad_every]}
    files = {int(one): BROKEN[one % 3] if int(one) in bad else picture(rng) for one in ids}
    table = pa.table({"id": pa.array(list(files), pa.int64()), "bytes": pa.array(list(files.values()), pa.binary())})
    parquet.write_table(table, path, row_group_size=1000)
    return files, bad
