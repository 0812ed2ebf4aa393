"""`--revision`: a pinned commit of a hub id, from the hub's cache and without a network."""

import os
import shutil
from pathlib import Path

import pytest

import multipatch_jax as mp

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tiny, tmp_path, monkeypatch) -> str:
    """A hub id, of which the cache has one commit and does not know whether it is the newest."""
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny.folder, repo / "blobs", dirs_exist_ok=True)
    (repo / "blobs" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    for file in (repo / "blobs").iterdir():
        os.symlink(file, snapshot / file.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return "owner/name"


@pytest.mark.parametrize(
    "command", ["convert MODEL o", "encode PHOTO --model MODEL --out o", "export o --model MODEL --platform cpu"]
)
def test_a_pinned_commit_is_found(command, run, cached, photo_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = command.replace("MODEL", cached).replace("PHOTO", str(photo_file)).split()
    status, _, err = run(*arguments)
    assert status == 2
    assert f"The cache has {COMMIT}: pass one as revision=" in err
    assert len(err.splitlines()) == 1
    assert not Path("o").exists()
    status, _, err = run(*arguments, "--revision", COMMIT)
    assert (status, err) == (0, "")
    assert Path("o").exists()


def test_convert_copies_what_a_processor_needs(run, cached, tmp_path):
    """Of a hub id and of a folder."""
    assert run("convert", cached, tmp_path / "o", "--revision", COMMIT)[0] == 0
    assert run("convert", tmp_path / "o", tmp_path / "p")[0] == 0
    for name in ("o", "p"):
        assert mp.checkpoint.saved_parts(tmp_path / name) == ("vision", "connector")
        for file in ("generation_config.json", "preprocessor_config.json"):
            assert (tmp_path / name / file).is_file()


def test_a_folder_has_no_revisions(run, tiny, photo_file, tmp_path):
    out = tmp_path / "o"
    status, _, err = run("encode", photo_file, "--model", tiny.folder, "--out", out, "--revision", "main")
    assert status == 2
    assert "--revision is for a hub id, and " in err
    assert not out.exists()
