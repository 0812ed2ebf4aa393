"""Manifests: made from folders and tar files, and refused where they are wrong."""

import errno
import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import multipatch_jax as mp
from multipatch_jax.corpus import source
from multipatch_jax.corpus.manifest import read_manifest
from multipatch_jax.corpus.source import read_sources


def png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def rows_of(path):
    return parquet.read_table(path).to_pylist()


def contents(path):
    """What a manifest's rows lead to: the bytes of each image."""
    manifest = read_manifest(path)
    return list(read_sources(rows_of(path), manifest.base))


def test_a_folder_becomes_a_manifest_in_the_order_of_names(tmp_path):
    files = {"b.png": png(0), "a.PNG": png(1), "sub/c.jpg": png(2), "sub/d.heic": b""}
    files |= {".hidden.png": b"", "notes.txt": b""}
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in/.cache").mkdir()
    (tmp_path / "in/.cache/e.png").write_bytes(b"")
    assert mp.corpus.make_manifest(tmp_path / "in", tmp_path / "m.parquet") == 4
    rows = rows_of(tmp_path / "m.parquet")
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    names = [row["path"].removeprefix(f"{tmp_path}/in/") for row in rows]
    assert names == ["a.PNG", "b.png", "sub/c.jpg", "sub/d.heic"]
    assert rows[0].keys() == {"id", "path"}
    assert contents(tmp_path / "m.parquet") == [files[name] for name in names]


def test_images_in_tar_files_are_found_where_they_lie(tmp_path):
    (tmp_path / "in").mkdir()
    members = {"1.png": png(0), "1.json": b"{}", "sub/2.png": png(1), "2.cls": b"3"}
    write_tar(tmp_path / "in/a.tar", members)
    write_tar(tmp_path / "in/b.tar", {"9.png": png(2)})
    (tmp_path / "in/single.png").write_bytes(png(3))
    assert mp.corpus.make_manifest(tmp_path / "in", tmp_path / "m.parquet") == 4
    assert [row["member"] for row in rows_of(tmp_path / "m.parquet")] == ["1.png", "sub/2.png", "9.png", None]
    assert contents(tmp_path / "m.parquet") == [png(0), png(1), png(2), png(3)]
    assert mp.corpus.make_manifest(tmp_path / "in/a.tar", tmp_path / "one.parquet") == 2


def test_a_tar_file_that_was_cut_afterwards_is_an_error_of_its_image(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": png(0), "2.png": png(1)})
    mp.corpus.make_manifest(tmp_path / "a.tar", tmp_path / "m.parquet")
    rows = rows_of(tmp_path / "m.parquet")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: rows[1]["offset"] + 10])
    first, second = read_sources(rows, "/")
    assert first == png(0)
    assert isinstance(second, ValueError)
    assert "bytes too early" in str(second)


@pytest.mark.parametrize("case", ["nothing", "empty", "compressed", "broken", "damaged", "no UTF-8"])
def test_a_source_without_images_is_refused_and_nothing_is_written(tmp_path, case):
    source, said = tmp_path / "in", {"nothing": "no folder", "empty": "got none"}.get(case, "")
    if case != "nothing":
        source.mkdir()
    if case == "compressed":
        (source / "a.tar.gz").write_bytes(b"")
        said = "not compressed"
    if case == "broken":
        (source / "a.tar").write_bytes(b"nonsense" * 100)
        said = "damaged"
    if case == "damaged":  # which `tarfile` takes for the end
        write_tar(source / "a.tar", {"1.png": png(0), "2.png": png(1), "3.png": png(2)})
        content = bytearray((source / "a.tar").read_bytes())
        content[1024:1536] = b"\1" * 512
        (source / "a.tar").write_bytes(content)
        said = "no header of a member at byte 1024"
    if case == "no UTF-8":
        with open(os.fsencode(source) + b"/\xff.png", "wb"):
            said = "must be UTF-8"
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        mp.corpus.make_manifest(source, tmp_path / "m.parquet")
    assert {path.name for path in tmp_path.iterdir()} <= {"in"}


WRONG = {
    "no id": ({"path": ["a"]}, "must have a column of integers `id`"),
    "no image": ({"id": [1]}, "`path` or `bytes`"),
    "unsigned ids": ({"id": pa.array([2**60 + 1], pa.uint64()), "path": ["a"]}, "must be int64, got uint64"),
    "text ids": ({"id": ["1"], "path": ["a"]}, "`id` of .* must be int64, got string"),
    "number paths": ({"id": [1], "path": [2]}, "`path` of .* must be string"),
    "text bytes": ({"id": [1], "bytes": ["a"]}, "`bytes` of .* must be binary"),
    "an id is missing": ({"id": [1, None], "path": ["a", "b"]}, "must have an id in every row"),
    "an id twice": ({"id": [3, 5, 3], "path": ["a", "b", "c"]}, "got 3 more than once"),
    "no rows": ({"id": pa.array([], pa.int64()), "path": pa.array([], pa.string())}, "at least one row"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_manifest_is_refused(tmp_path, case):
    columns, said = WRONG[case]
    parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=said):
        read_manifest(tmp_path / "m.parquet")


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="must be a Parquet file"):
        read_manifest(tmp_path / "m.parquet")
    with pytest.raises(FileNotFoundError, match="no manifest"):
        read_manifest(tmp_path / "other.parquet")


def test_a_folder_of_parquet_files_is_one_manifest(tmp_path):
    for index, ids in enumerate(([5, 1], [3])):
        table = pa.table({"id": pa.array(ids, pa.int32()), "path": ["x"] * len(ids), "caption": ["y"] * len(ids)})
        parquet.write_table(table, tmp_path / f"{index}.parquet")
    (tmp_path / "_part.parquet").write_bytes(b"hidden, as Ray has it")
    manifest = read_manifest(tmp_path)
    assert manifest.ids.tolist() == [1, 3, 5]
    assert manifest.columns == ("id", "path")
    assert manifest.files == tuple(str(tmp_path / f"{index}.parquet") for index in range(2))
    assert manifest.base == str(tmp_path)


def test_the_digest_is_that_of_the_rows(tmp_path):
    digests = set()
    for index, (ids, paths) in enumerate([([1, 2], ["a", "b"]), ([1, 2], ["a", "c"]), ([2, 1], ["a", "b"])]):
        parquet.write_table(pa.table({"id": ids, "path": paths}), tmp_path / f"{index}.parquet")
        digests.add(read_manifest(tmp_path / f"{index}.parquet").digest)
    assert len(digests) == 3
    parquet.write_table(pa.table({"id": [1, 2], "path": ["a", "b"]}), tmp_path / "again.parquet", row_group_size=1)
    assert read_manifest(tmp_path / "again.parquet").digest in digests


def test_the_digest_tells_other_images_of_the_same_ids(tmp_path):
    digests = set()
    for content in (b"one", b"three"):
        parquet.write_table(pa.table({"id": [1], "bytes": pa.array([content], pa.binary())}), tmp_path / "m.parquet")
        digests.add(read_manifest(tmp_path / "m.parquet").digest)
    assert len(digests) == 2


def test_sources_are_bytes_or_errors_in_order(tmp_path):
    for index in range(40):
        (tmp_path / f"{index}.png").write_bytes(bytes([index]))
    (tmp_path / "with space & %20.png").write_bytes(b"z")
    rows = [
        {"path": "0.png"},
        {"path": None, "bytes": b"x"},
        {"path": "gone.png", "bytes": b"y"},
        {"path": None},
        {"path": "gone.png"},
        {"path": ""},
        {"path": str(tmp_path)},
        {"path": "x" * 5000},
        {"path": f"file://{tmp_path}/1.png"},
        {"path": f"file://{tmp_path}/with space & %20.png"},
        {"path": f"file://{tmp_path}/gone.png"},
        {"path": "gone://bucket/a.png"},
        *({"path": f"{index}.png"} for index in range(40)),
    ]
    found = list(read_sources(rows, str(tmp_path)))
    assert found[:3] == [b"\0", b"x", b"y"]
    assert [type(error) for error in found[3:8]] == [
        ValueError,
        FileNotFoundError,
        ValueError,
        IsADirectoryError,
        OSError,
    ]
    assert found[8:10] == [b"\1", b"z"]
    assert isinstance(found[10], FileNotFoundError)
    assert isinstance(found[11], ValueError)
    assert found[12:] == [bytes([index]) for index in range(40)]


def test_what_may_pass_is_tried_again_and_then_ends_the_run(tmp_path, monkeypatch):
    """Such as too many open files: no error of the image, which would then never be tried again."""
    monkeypatch.setattr(source, "PAUSES", (0, 0))
    (tmp_path / "a.png").write_bytes(b"x")
    tries = []

    def fail_at_first(number):
        def read(row, base):
            tries.append(row)
            if len(tries) <= number:
                raise OSError(errno.EMFILE, "Too many open files")
            return b"x"

        return read

    for number, fails in ((2, False), (3, True)):
        tries.clear()
        monkeypatch.setattr(source, "_read", fail_at_first(number))
        if fails:
            with pytest.raises(source.Unreachable, match=r"a\.png cannot be read: .*Too many open files"):
                list(read_sources([{"path": "a.png"}], str(tmp_path)))
        else:
            assert list(read_sources([{"path": "a.png"}], str(tmp_path))) == [b"x"]
        assert len(tries) == 3
