"""Any list of arguments: a result or one error, and nothing that was there before is changed."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multipatch_jax.cli import main

PLACES = ["cat.png", "text.jpg", "folder", "folder/dog.png", "link.png", "none", "none/x.png", "", ".", "/dev/null"]
PLACES += ["x" * 300, "caf\udce9.png", "new.png", "new.safetensors", "a\nb"]
WORDS = st.sampled_from(
    [*PLACES, "3", "0", "-1", "9" * 30, "owner", "--", "-", "float32", "cpu", "--help", "--version"]
)
OPTIONS = st.sampled_from(
    ["--model", "--out", "--overlay", "--pca", "--dtype", "--revision", "--batch-size", "--parts"]
)
ENCODE = st.tuples(
    st.just(["encode"]),
    st.lists(st.sampled_from(PLACES), min_size=1, max_size=3),
    st.tuples(st.just("--out"), st.sampled_from(PLACES)),
    st.one_of(st.just(()), st.tuples(st.sampled_from(["--overlay", "--pca"]), st.sampled_from(PLACES))),
    st.tuples(st.just("--model"), st.sampled_from(["folder", "none", "text.jpg", "."])),
).map(lambda parts: [word for part in parts for word in part])
FOLDERS = st.tuples(
    st.sampled_from([("convert", "folder"), ("convert", "none"), ("export", "--model", "folder")]),
    st.sampled_from(PLACES),
).map(lambda parts: [*parts[0], parts[1]])
ANY = st.tuples(
    st.sampled_from(["encode", "plan", "convert", "export", "nonsense"]),
    st.lists(st.one_of(WORDS, OPTIONS), max_size=6),
).map(lambda parts: [parts[0], *parts[1]])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.one_of(ENCODE, FOLDERS, ANY, st.lists(WORDS, max_size=3)))
def test_any_arguments_are_a_result_or_an_error(arguments, photo_file):
    """No model can be read here, so a command that writes cannot succeed."""
    before_cwd = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            Path("cat.png").write_bytes(photo_file.read_bytes())
            Path("text.jpg").write_text("no image")
            Path("folder").mkdir()
            Path("folder/dog.png").write_bytes(photo_file.read_bytes())
            os.symlink("cat.png", "link.png")
            before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(arguments)
            assert status in (0, 2)
            lines = err.getvalue().splitlines()
            if status == 2 and not lines[0].startswith("usage: "):
                assert len(lines) == 1
                assert lines[0].startswith(f"multipatch-jax {arguments[0]}: ")
                assert len(lines[0]) < 1500
            assert status == 2 or not lines
            assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before
        finally:
            os.chdir(before_cwd)
