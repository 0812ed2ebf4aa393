"""Files and folders that are written whole: what a killed writer leaves is cleaned, and modes are the umask's."""

import stat
import threading
from pathlib import Path

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.files import new_folder, replace_file, require_path
from tests.helpers.processes import run_python, start_python

DIES = """
import os, sys, time
from pathlib import Path
from multipatch_jax.files import new_folder, replace_file
write = {"folder": new_folder, "file": replace_file}[sys.argv[1]]
with write(Path(sys.argv[2])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    if sys.argv[3:]:
        print(temporary, flush=True)
        time.sleep(60)
    os.kill(os.getpid(), 9)
"""


def write_folder(path):
    with new_folder(path) as folder:
        (folder / "whole").write_text("whole")


def write_file(path):
    with replace_file(path) as file:
        file.write_text("whole")


WRITERS = {"folder": write_folder, "file": write_file}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_writer_left_is_deleted_by_the_next_one(kind, tmp_path):
    assert run_python("-c", DIES, kind, tmp_path / "a.npz").returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.npz.partial-")
    WRITERS[kind](tmp_path / "b.npz")  # of another name: not its own leftover
    assert left.exists()
    WRITERS[kind](tmp_path / "a.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_living_writer_is_writing_stays(kind, tmp_path):
    alive = start_python("-c", DIES, kind, tmp_path / "a.npz", "wait")
    assert alive.stdout is not None
    temporary = Path(alive.stdout.readline().strip())
    try:
        WRITERS[kind](tmp_path / "a.npz")
        assert temporary.exists()
    finally:
        alive.kill()
        alive.communicate()


def test_only_what_this_package_left_is_deleted(tmp_path):
    """The names of others, a link with the name of a leftover, and what a leftover links to."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "kept").write_text("kept")
    others = [".a", ".a.12345678", ".a.partial-", ".a.partial-xyz", ".b.partial-0123456789abcdef", "a.partial-0123"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".a.partial-0123456789abcdef").symlink_to(own)
    (tmp_path / ".a.partial-fedcba9876543210").mkdir()
    (tmp_path / ".a.partial-fedcba9876543210" / "link").symlink_to(own)
    write_folder(tmp_path / "a")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, "a", "own", ".a.partial-0123456789abcdef"}
    assert (own / "kept").read_text() == "kept"


def test_many_writers_of_one_name_do_not_disturb_each_other(tmp_path):
    errors = []

    def write():
        for _ in range(20):
            try:
                write_file(tmp_path / "a")
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_name_may_be_as_long_as_the_file_system_takes(kind, tmp_path):
    for name in ("a" * 251 + ".npz", "é" * 125 + ".npz"):
        WRITERS[kind](tmp_path / name)
        assert (tmp_path / name).exists()


def test_a_name_that_is_taken_meanwhile_is_refused(tmp_path):
    with pytest.raises(FileExistsError, match="a exists; delete it or choose another name"), new_folder(tmp_path / "a"):
        write_folder(tmp_path / "a")
    for within in ("whole/b", "whole/b/c"):
        with pytest.raises(FileExistsError, match="is a file, or is within one; choose another folder"):
            write_folder(tmp_path / "a" / within)
    (tmp_path / "b").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="b exists"):
        write_folder(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# ---------------------------------------------------------------------------------------------------------------------
# Modes.


MODES = """
import os, sys
os.umask(int(sys.argv[2], 8))
from pathlib import Path
from multipatch_jax.files import new_folder, replace_file
with new_folder(Path(sys.argv[1], "folder")) as folder:
    (folder / "inner").mkdir(mode=0o700)
    for file in (folder / "a", folder / "inner" / "b"):
        file.touch(mode=0o600)
with replace_file(Path(sys.argv[1], "file")) as file:
    file.write_text("a")
"""


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_modes_are_those_that_the_umask_gives(umask, tmp_path):
    assert run_python("-c", MODES, tmp_path, oct(umask)).returncode == 0
    for path in tmp_path.rglob("*"):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_every_file_of_a_saved_and_of_an_exported_model_has_the_mode_of_a_new_file(tiny, tmp_path):
    (tmp_path / "new").touch()
    mp.save_pretrained(tmp_path / "saved", tiny.config, tiny.params)
    mp.export_hf(tmp_path / "hf", tiny.config, tiny.params)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert {mode(path) for path in files} == {mode(tmp_path / "new")}


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    (tmp_path / "a").touch(mode=0o600)
    with replace_file(tmp_path / "a") as file:
        assert mode(file) == 0o600
        file.write_text("secret")
    assert mode(tmp_path / "a") == 0o600


def test_the_mode_of_what_a_link_leads_to_is_not_changed(tmp_path):
    """A link in place of the temporary file, or inside the temporary folder."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    with replace_file(tmp_path / "a") as file:
        file.unlink()
        file.symlink_to(secret)
    with new_folder(tmp_path / "b") as folder:
        (folder / "link").symlink_to(secret)
        (folder / "up").symlink_to(tmp_path)
    assert mode(secret) == 0o600


@pytest.mark.parametrize("value", [None, "", 5, b"a", "a\0b", np.zeros(10**6)])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(ValueError, match="path must be the path of a file or folder, got") as caught:
        require_path("path", value)
    assert len(str(caught.value)) < 100
    assert require_path("path", "a") == require_path("path", Path("a")) == Path("a")
