"""A folder beside the model's, or a git-lfs pointer in a file's place: the error says what to do."""

import shutil

import pytest

import multipatch_jax as mp
from multipatch_jax.checkpoint.other_folder import other_folder
from multipatch_jax.files import read_json

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 513000000\n"


def test_a_repository_in_a_hub_cache_is_told_by_its_snapshot(tiny, tmp_path):
    repo = tmp_path / "hub" / "models--owner--name"
    assert other_folder(tmp_path) == ""
    (repo / "snapshots").mkdir(parents=True)
    assert "holds no snapshot" in other_folder(repo)
    snapshot = repo / "snapshots" / ("a" * 40)
    shutil.copytree(tiny.folder, snapshot)
    assert other_folder(repo) == f"It is a repository in a hub cache: pass a snapshot, {snapshot}, or its hub id."
    assert other_folder(repo / "snapshots") == f"These of its folders have a config.json: pass {snapshot}."
    assert other_folder(repo.parent) == (
        f"It is a hub cache: pass one of its hub ids, owner/name, with cache_dir={str(repo.parent)!r}."
    )


def test_only_some_of_many_folders_are_named(tmp_path):
    for number in range(9):
        (tmp_path / f"step{number}").mkdir()
        (tmp_path / f"step{number}" / "config.json").touch()
    assert other_folder(tmp_path).endswith(f"or {tmp_path / 'step4'} (and 4 more).")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_git_lfs_pointer_is_named(folder, file):
    (folder / file).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{folder / file} is a git-lfs pointer, .*git lfs pull"):
        mp.from_pretrained(folder)


def test_a_pointer_in_place_of_the_index_or_a_shard(folder):
    (folder / "model.safetensors.index.json").write_text(POINTER)
    with pytest.raises(ValueError, match=r"index\.json is a git-lfs pointer"):
        mp.from_pretrained(folder)
    with pytest.raises(ValueError, match="is a git-lfs pointer"):
        read_json(folder / "model.safetensors.index.json")


def test_a_file_in_place_of_its_folder_is_told(folder):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a file: pass its folder"):
        mp.from_pretrained(folder / "model.safetensors")
