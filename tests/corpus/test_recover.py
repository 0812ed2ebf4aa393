"""What a killed process leaves in a run's folder: all that is not whole is deleted, and nothing else."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from multipatch_jax.corpus.error import CorpusError
from multipatch_jax.corpus.manifest import read_manifest
from multipatch_jax.corpus.run_folder import check_complete, ids_in, locked_folder, recover


def write(file, ids):
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"id": pa.array(ids, pa.int64())}), file)


@pytest.fixture
def out(tmp_path):
    """A folder with two blocks that are done: ids 0 and 1, ids 2 and 3."""
    for number in range(2):
        ids = [2 * number, 2 * number + 1]
        write(tmp_path / f"out/done/run_00000{number}.parquet", ids)
        write(tmp_path / f"out/results/run_00000{number}-0.parquet", ids)
    (tmp_path / "out/run.json").write_text("{}")
    return tmp_path / "out"


def names(out):
    return sorted(str(file.relative_to(out)) for file in out.rglob("*.parquet"))


WHOLE = [
    *(f"done/run_00000{number}.parquet" for number in range(2)),
    *(f"results/run_00000{number}-0.parquet" for number in range(2)),
]


def test_what_is_whole_stays(out):
    recover(out)
    assert names(out) == sorted(WHOLE)
    assert ids_in(out / "done").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("result", ["none", "half", "whole"])
@pytest.mark.parametrize("pending", ["empty", "whole"])
def test_a_block_that_was_being_written_is_deleted(out, pending, result):
    write(out / "done/run_000002.pending.parquet", [4, 5])
    if pending == "empty":
        (out / "done/run_000002.pending.parquet").write_bytes(b"")
    if result != "none":
        write(out / "results/run_000002-0.parquet", [4, 5])
    if result == "half":
        file = out / "results/run_000002-0.parquet"
        file.write_bytes(file.read_bytes()[:-3])
    recover(out)
    assert names(out) == sorted(WHOLE)


def test_a_block_that_was_written_again_after_its_end_is_deleted_whole(out):
    """Ray's own recovery would delete the results and keep the ids."""
    write(out / "done/run_000001.pending.parquet", [2, 3])
    recover(out)
    assert ids_in(out / "done").tolist() == ids_in(out / "results").tolist() == [0, 1]


@pytest.mark.parametrize("broken", WHOLE)
@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
def test_a_block_with_a_broken_file_is_done_again(out, broken, how):
    """As after a power cut, or where somebody has deleted results."""
    content = (out / broken).read_bytes()
    (out / broken).unlink()
    if how != "gone":
        (out / broken).write_bytes(content[:-3] if how == "cut" else b"")
    recover(out)
    left = [0, 1] if "000001" in broken else [2, 3]
    assert ids_in(out / "done").tolist() == ids_in(out / "results").tolist() == left


def test_other_peoples_files_stay_and_are_named(out, tmp_path):
    write(out / "results/mine.parquet", [99])
    recover(out)
    assert "results/mine.parquet" in names(out)
    parquet.write_table(pa.table({"id": np.arange(5), "path": ["x"] * 5}), tmp_path / "m.parquet")
    said = "1 ids are missing, the first is 4; 1 ids are not in the manifest, the first is 99"
    with pytest.raises(CorpusError, match=said):
        check_complete(out, read_manifest(tmp_path / "m.parquet"))
    write(out / "results/mine.parquet", [3, 4])
    with pytest.raises(CorpusError, match="1 ids are there twice, the first is 3"):
        check_complete(out, read_manifest(tmp_path / "m.parquet"))


def test_a_kill_before_the_run_is_written_down_is_no_other_file(tmp_path):
    """The manifest was being made, or run.json."""
    (tmp_path / "out/.manifest-x").mkdir(parents=True)
    (tmp_path / "out/.manifest-x/manifest.parquet").write_bytes(b"half")
    (tmp_path / "out/.run.json.partial-0123456789abcdef.json").write_text("{")
    with locked_folder(tmp_path / "out"):
        pass
    assert not (tmp_path / "out/.manifest-x").exists()
