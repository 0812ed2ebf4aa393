"""However a command ends, it ends in one line: Ctrl-C, a closed pipe, a full disk where it prints."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from safetensors import safe_open

from multipatch_jax.cli import main
from multipatch_jax.cli.interrupts import interrupt_later
from multipatch_jax.cli.printing import Output
from tests.helpers.processes import environment, run_python


@pytest.fixture
def interrupting_pipe(tmp_path):
    """The name of a pipe. The process that opens it, to read a photograph, gets Ctrl-C in the middle of the file."""

    def interrupt():
        while True:
            try:
                pipe = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:  # there is no reader yet
                time.sleep(0.01)
        os.write(pipe, b"\x89PNG")
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(60)
        os.close(pipe)

    ended = threading.Event()
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=interrupt, daemon=True).start()
    yield tmp_path / "pipe"
    ended.set()


def test_ctrl_c_keeps_the_photographs_that_are_finished(run, tiny, photo_file, interrupting_pipe, tmp_path):
    arguments = [photo_file, tmp_path / "none.png", photo_file, interrupting_pipe, photo_file]
    status, _, err = run("encode", *arguments, "--model", tiny.folder, "--out", tmp_path / "o")
    assert status == 130
    skipped, last = err.splitlines()
    assert "none.png is left out" in skipped
    assert last == f"multipatch-jax encode: interrupted; the tokens of 2 of 5 photographs are in {tmp_path / 'o'}"
    with safe_open(tmp_path / "o", "numpy") as file:
        assert set(file.keys()) == {"tokens_0", "tokens_2"}
        assert [entry["index"] for entry in json.loads(file.metadata()["failed"])] == [1]


def test_ctrl_c_before_the_first_photograph_is_finished(run, tiny, interrupting_pipe, tmp_path):
    (tmp_path / "o").write_text("older")
    status, _, err = run("encode", interrupting_pipe, "--model", tiny.folder, "--out", tmp_path / "o")
    assert (status, err) == (130, "multipatch-jax encode: interrupted\n")
    assert (tmp_path / "o").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "pipe"]


@pytest.fixture
def unread(monkeypatch):
    """Makes a standard output that nobody reads; returns the function that opens it as a file descriptor."""
    stream = None

    def put(descriptor: int) -> None:
        nonlocal stream
        stream = open(descriptor, "w")
        monkeypatch.setattr(sys, "stdout", stream)

    yield put
    if stream is not None:
        stream.close()  # raises if something is left in its buffer that cannot be written


def closed_pipe() -> int:
    end, start = os.pipe()
    os.close(end)
    return start


@pytest.mark.parametrize(
    ("descriptor", "expected", "message"),
    [
        (closed_pipe, 141, ""),
        (lambda: os.open("/dev/full", os.O_WRONLY), 1, "multipatch-jax COMMAND: not all of the output was printed"),
    ],
    ids=["pipe", "disk"],
)
@pytest.mark.parametrize(
    "command", ["encode PHOTO --model MODEL --out o", "convert MODEL o", "export o --model MODEL --platform cpu"]
)
def test_results_are_written_if_printing_fails(
    command, descriptor, expected, message, unread, tiny, photo_file, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    unread(descriptor())
    arguments = command.replace("PHOTO", str(photo_file)).replace("MODEL", str(tiny.folder)).split()
    status = main(arguments)
    err = capfd.readouterr().err
    assert status == expected
    assert (tmp_path / "o").exists()
    assert err.startswith(message.replace("COMMAND", arguments[0]))
    assert len(err.splitlines()) == bool(message)


def test_standard_output_and_error_may_be_closed(tiny, photo_file, tmp_path, monkeypatch):
    """As by the shell's `>&- 2>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    photos = [str(photo_file), str(tmp_path / "none.png")]
    assert main(["encode", *photos, "--model", str(tiny.folder), "--out", str(tmp_path / "o")]) == 1
    assert (tmp_path / "o").exists()


def test_output_may_be_closed_before_its_last_use():
    """Python 3.13 flushes an object that it forgets."""
    stream = io.StringIO()
    output = Output(stream)
    output.write("said")
    assert stream.getvalue() == "said"
    stream.close()
    output.flush()
    assert output.write("lost\n") == 5
    assert output.error is None


CTRL_C_IN_A_CALLBACK = """
import argparse, gc, signal, sys, threading, time
from multipatch_jax.cli import run_command

def interrupt(phase, info):
    if phase == "start":
        gc.callbacks.remove(interrupt)
        signal.raise_signal(signal.SIGINT)

def work(args):
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(60)

def make_parser():
    parser = argparse.ArgumentParser()
    parser.set_defaults(run=work)
    return parser

start = threading.Thread.start
threading.Thread.start = lambda self: (start(self), time.sleep(BUSY))
sys.exit(run_command("work", make_parser, []))
"""


@pytest.mark.parametrize("busy", ["0", "0.3"])
def test_an_interrupt_that_a_callback_swallows_comes_again(busy):
    """Python prints what a callback at a garbage collection raises, and goes on; JAX has such a callback.

    On a busy machine the start of a thread takes long.
    """
    done = run_python("-c", CTRL_C_IN_A_CALLBACK.replace("BUSY", busy))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "work: interrupted\n")


@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupt_waits_for_what_is_better_finished(presses, tmp_path):
    def write():
        with interrupt_later("the file is written"):
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
            (tmp_path / "file").touch()

    with pytest.raises(KeyboardInterrupt, match="the file is written" if presses == 1 else "^$"):
        write()
    assert (tmp_path / "file").exists() == (presses == 1)


@pytest.mark.parametrize("arguments", [["plan", "3", "4"], ["encode", "--help"]])
@pytest.mark.parametrize("both", [False, True])
def test_a_process_whose_output_nobody_reads_ends_without_a_word(arguments, both):
    """With `both`, standard error goes to the same closed pipe."""
    pipe = closed_pipe()
    command = [sys.executable, "-m", "multipatch_jax", *arguments]
    err = pipe if both else subprocess.PIPE
    done = subprocess.run(command, stdout=pipe, stderr=err, env=environment(), timeout=120, check=False)
    os.close(pipe)
    assert done.returncode == 141
    assert not done.stderr


def test_an_error_whose_output_nobody_reads():
    pipe = closed_pipe()
    command = [sys.executable, "-m", "multipatch_jax", "plan", "0", "4"]
    done = subprocess.run(command, stdout=pipe, stderr=pipe, env=environment(), timeout=120, check=False)
    os.close(pipe)
    assert done.returncode == 2


CTRL_C_AT_THE_IMPORT_OF_JAX = """
import signal, sys
class Finder:
    def find_spec(self, name, *others):
        if name == "jax":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
from multipatch_jax.cli import main
sys.exit(main(["plan", "3", "4"]))
"""


def test_ctrl_c_while_jax_is_imported():
    done = run_python("-c", CTRL_C_AT_THE_IMPORT_OF_JAX)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "multipatch-jax: interrupted\n")
