"""Where a command writes is checked before any work: no input, no other output and no special file is replaced."""

import os
import shutil

import pytest


@pytest.fixture
def files(photo_file, tmp_path, monkeypatch):
    """The working directory: a photograph, links to it, a pipe, a folder."""
    monkeypatch.chdir(tmp_path)
    os.symlink("cat.png", "link.png")
    os.symlink("nowhere", "dangling")
    os.link("cat.png", "twin.png")
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("folder", "folder-link")
    shutil.copy("cat.png", "folder/dog.png")
    return tmp_path


def state(folder):
    """Everything in a folder: kind of node, and content."""
    return {path: path.read_bytes() if path.is_file() else path.lstat().st_mode for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("encode cat.png --out cat.png --model model", "--out cat.png would replace the input cat.png"),
        ("encode cat.png --out ./folder/../cat.png --model model", "would replace the input cat.png"),
        ("encode cat.png --out twin.png --model model", "--out twin.png would replace the input cat.png"),
        ("encode link.png --out cat.png --model model", "--out cat.png would replace the input link.png"),
        ("encode folder/dog.png --out folder-link/dog.png --model model", "would replace the input folder/dog.png"),
        ("encode cat.png --out o --overlay cat.png --model model", "--overlay cat.png would replace the input cat.png"),
        ("encode cat.png --out o --pca cat.png --model model", "--pca cat.png would replace the input cat.png"),
        ("encode cat.png --out o.png --overlay o.png --model model", "--overlay o.png is the file of --out too"),
        ("encode cat.png --out o --overlay p.png --pca folder/../p.png --model model", "is the file of --overlay too"),
        ("encode cat.png --out link.png --model model", "--out must not be a symbolic link"),
        ("encode cat.png --out dangling --model model", "--out must not be a symbolic link"),
        ("encode cat.png --out pipe --model model", "--out must be a file, and pipe is a device or pipe"),
        ("encode cat.png --out /dev/null --model model", "--out must be a file, and /dev/null is a device or pipe"),
        ("encode cat.png --out folder --model model", "--out must be a file, and folder is a folder"),
        ("encode cat.png --out LONG --model model", "--out cannot be written (File name too long)"),
        ("encode cat.png --out cat.png/o --model model", "There is no folder cat.png to write o into"),
        ("encode cat.png --out /proc/o --model model", "--out cannot be written"),
        ("encode cat.png --out model/config.json --model model", "is a file in the model's folder"),
        ("export folder --model model", "folder exists; delete it or choose another name"),
        ("export dangling --model model", "dangling exists; delete it or choose another name"),
        ("export cat.png/o --model model", "There is no folder cat.png to write o into"),
        ("export LONG --model model", "cannot be written (File name too long)"),
        ("export LONG/o --model model", "cannot be written (File name too long)"),
        ("export /proc/a/o --model model", "cannot be written"),
        ("convert nothing folder", "folder exists; delete it or choose another name"),
        ("convert nothing LONG", "cannot be written (File name too long)"),
        ("demo --out cat.png", "cat.png exists; delete it or choose another name"),
        ("demo --out dangling", "dangling exists; delete it or choose another name"),
        ("demo --out LONG", "cannot be written (File name too long)"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused_before_any_work(command, message, run, files):
    """The model cannot be read, so each of these errors comes before it is looked at."""
    (files / "model").mkdir()
    (files / "model" / "config.json").write_text("{}")
    before = state(files)
    status, _, err = run(*command.replace("LONG", "x" * 300).split())
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert len(err) < 400
    assert state(files) == before
