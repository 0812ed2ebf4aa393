"""`multipatch-jax encode` of many photographs: a bad one loses nothing, and each is read once."""

import json
import os
import resource
import threading

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open


@pytest.fixture
def photos(photo, tmp_path, monkeypatch):
    """Names of three small photographs, in the working directory, with a damaged and a missing one between them."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(["a.png", "b.png", "c.png"]):
        Image.fromarray(photo[: 60 + index, :300]).save(name)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    return ["a.png", "half.png", "b.png", "none.png", "c.png"]


def images(path) -> list[dict]:
    """The entries of a file of tokens; asserts that its arrays are those of its entries."""
    with safe_open(path, "numpy") as file:
        entries = json.loads(file.metadata()["images"])
        assert [entry["key"] for entry in entries] == sorted(file.keys())
        for entry in entries:
            array = file.get_tensor(entry["key"])
            assert array.shape == (entry["num_tokens"], 48)
            assert array.any(axis=1).all()
        return entries


def test_bad_photographs_are_named_and_the_others_written(run, tiny, photos, tmp_path):
    status, out, err = run("encode", *photos, "--model", tiny.folder, "--out", "o")
    assert status == 1
    first, second, last = err.splitlines()
    assert first.startswith("multipatch-jax encode: half.png is left out: Image file 'half.png' cannot be decoded: ")
    assert second.startswith("multipatch-jax encode: none.png is left out: ")
    assert last == "multipatch-jax encode: 2 of 5 photographs are left out: half.png, none.png"
    assert "c.png: 62 x 300 ->" in out
    assert [(entry["key"], entry["file"], entry["height"]) for entry in images(tmp_path / "o")] == [
        ("tokens_0", "a.png", 60),
        ("tokens_2", "b.png", 61),
        ("tokens_4", "c.png", 62),
    ]
    with safe_open("o", "numpy") as file:
        assert json.loads(file.metadata()["failed"]) == [
            {"index": 1, "file": "half.png"},
            {"index": 3, "file": "none.png"},
        ]


def test_a_photographs_tokens_do_not_depend_on_the_others(run, tiny, photos, tmp_path):
    run("encode", *photos, "--model", tiny.folder, "--out", "all", "--dtype", "bfloat16")
    assert run("encode", "c.png", "--model", tiny.folder, "--out", "one", "--dtype", "bfloat16")[0] == 0
    with safe_open("all", "numpy") as many, safe_open("one", "numpy") as one:
        assert one.get_tensor("tokens_0").dtype.name == "bfloat16"
        np.testing.assert_array_equal(many.get_tensor("tokens_4"), one.get_tensor("tokens_0"))


@pytest.mark.parametrize("bad", [["none.png", "x.png"], ["half.png", "half.png"]])
def test_of_bad_photographs_alone_nothing_is_written(bad, run, tiny, photos, tmp_path):
    status, _, err = run("encode", *bad, "--model", tiny.folder, "--out", "o")
    assert status == 2
    assert "none of the 2 photographs can be read" in err.splitlines()[-1]
    assert not (tmp_path / "o").exists()
    assert all(name in err for name in bad)


def test_a_photograph_is_read_once(run, tiny, photos, tmp_path):
    """So it may be a pipe, such as the shell's `<(...)`."""
    content = (tmp_path / "b.png").read_bytes()
    os.mkfifo("pipe")
    threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content), daemon=True).start()
    assert run("encode", "pipe", "a.png", "--model", tiny.folder, "--out", "o")[0] == 0
    assert [entry["height"] for entry in images(tmp_path / "o")] == [61, 60]


def test_a_full_disk_keeps_what_fits(run, tiny, photos, tmp_path):
    """The limit on a file's size stands for the disk's."""
    assert run("encode", "a.png", "b.png", "--model", tiny.folder, "--out", "two")[0] == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "two").stat().st_size + 1000, limits[1]))
    try:
        status, _, err = run("encode", "a.png", "b.png", "c.png", "--model", tiny.folder, "--out", "o")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "File too large" in err
    assert "the tokens of 2 of 3 photographs are in o" in err
    assert [entry["file"] for entry in images(tmp_path / "o")] == ["a.png", "b.png"]
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".png") == ["", ""]


def test_names_that_are_no_text_are_written_all_the_same(run, tiny, photos, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    status, out, _ = run("encode", name, "--model", tiny.folder, "--out", "o")
    assert status == 0
    assert "caf\\udce9.png: 60 x 300" in out
    assert images(tmp_path / "o")[0]["file"] == name
