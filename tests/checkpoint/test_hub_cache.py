"""Revisions, and the hub's cache without a network, by huggingface_hub's own client over a cache made by hand."""

import os
import shutil
from pathlib import Path

import pytest

import multipatch_jax as mp
from multipatch_jax.checkpoint.hub import download, fetch, fetch_if_there
from tests.helpers.processes import run_python

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def cache(tiny, tmp_path) -> Path:
    """A cache that holds one commit of owner/name, and no refs/main: as `hf download --revision COMMIT` leaves it."""
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in tiny.folder.iterdir():
        shutil.copyfile(file, repo / "blobs" / file.name)
        os.symlink(repo / "blobs" / file.name, snapshot / file.name)
    return tmp_path / "hub"


def test_a_commit_in_the_cache_needs_neither_refs_nor_network(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    folder = cache / "models--owner--name" / "snapshots" / COMMIT
    for local in (True, False):
        options = {"revision": COMMIT, "cache_dir": cache, "local_files_only": local}
        assert fetch("owner/name", "config.json", **options) == folder / "config.json"
        assert download("owner/name", ("vision", "connector"), **options) == folder
    assert fetch_if_there("owner/name", "no.json", revision=COMMIT, cache_dir=cache, local_files_only=True) is None
    mp.from_pretrained(folder)


def test_what_the_cache_lacks_is_refused_by_name(cache):
    options = {"cache_dir": cache, "local_files_only": True}
    with pytest.raises(FileNotFoundError, match=f"the hub did not give its config.json.*cache has {COMMIT}.*revision="):
        download("owner/name", ("vision",), **options)
    with pytest.raises(FileNotFoundError, match=f"did not give its config.json of {OTHER}"):
        download("owner/name", ("vision",), revision=OTHER, **options)
    with pytest.raises(FileNotFoundError, match="There is no folder owner/other"):
        download("owner/other", ("vision",), revision=COMMIT, **options)


def test_a_branch_is_looked_up_in_the_caches_refs(cache):
    refs = cache / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "v2").write_text(COMMIT)
    folder = download("owner/name", ("vision",), revision="v2", cache_dir=cache, local_files_only=True)
    assert folder.name == COMMIT


NO_NETWORK = """
import sys
from multipatch_jax.checkpoint.hub import fetch
from tests.helpers.processes import run_python
try:
    fetch("owner/name", "config.json", cache_dir=sys.argv[1])
except FileNotFoundError as error:
    print(error)
"""


def test_without_a_network_the_error_comes_at_once_and_alone(tmp_path):
    """The hub client would try again six times, with a warning each time."""
    changes = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = run_python("-c", NO_NETWORK, tmp_path, changes=changes)
    assert "the hub cannot be reached" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
