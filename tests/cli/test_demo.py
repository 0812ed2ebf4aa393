"""`multipatch-jax demo`."""

import re
import socket
import threading

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from multipatch_jax.checkpoint import find_folder, shipped
from multipatch_jax.cli.demo import load_published
from multipatch_jax.cli.reader import FILES
from tests.helpers.models import TINY_SMOLVLM
from tests.helpers.processes import python_output


def assert_one_screen(printed, out):
    """What was printed fits on a screen, and names every file that was written."""
    assert len(printed.splitlines()) < 24
    assert max(map(len, printed.replace(str(out), "demo").splitlines())) <= 110
    assert f"\nwritten into {out}:\n" in printed
    named = re.findall(r"^  (\w+\.\w+)  +\S", printed, re.MULTILINE)
    assert sorted(named) == sorted(file.name for file in out.iterdir())
    assert "\nwhat to try next" in printed


def test_demo_on_random_weights_of_the_real_shapes(tmp_path):
    """The README's first command, in a process of its own: a real photograph through all of SmolVLM-256M's tower."""
    printed = python_output("-m", "multipatch_jax", "demo", "--random-weights", "--out", tmp_path / "demo")
    assert "the tokens mean nothing" in printed
    assert "cat: 300 x 451 -> 3 x 4 tiles + global = 13 tiles, 832 tokens\n" in printed
    assert "cat: 832 tokens of width 576, float32, in " in printed
    assert_one_screen(printed, tmp_path / "demo")
    with safe_open(tmp_path / "demo" / "tokens.safetensors", "numpy") as file:
        tokens = file.get_tensor("tokens_0")
    assert tokens.shape == (832, 576)
    assert np.isfinite(tokens).all()
    assert Image.open(tmp_path / "demo" / "tiles.png").width > 1000
    assert Image.open(tmp_path / "demo" / "pca.png").width > 500


def test_demo_reads_a_page_without_a_network(tmp_path):
    """The README's first command where the hub does not answer: the right answer on the screen and in a picture."""
    out = tmp_path / "demo"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    printed = python_output("-m", "multipatch_jax", "demo", "--out", out, changes=offline)
    assert printed.startswith("The hub did not answer, so a small model that comes with the package reads a page")
    with Image.open(find_folder("multipatch/reader") / "page.png") as page:
        numbers = page.info["numbers"]
    said = dict(re.findall(r"^  (.+?): +(.*)$", printed, re.MULTILINE))
    assert said["with its tiles"] == said["written on the page"] == numbers
    assert said["from the global tile alone"] != numbers
    assert "900 x 700 -> 4 x 4 tiles + global = 17 tiles, 272 tokens" in printed
    assert {file.name for file in out.iterdir()} == set(FILES)
    assert_one_screen(printed, out)
    assert min(Image.open(out / "answers.png").size) > 300
    assert Image.open(out / "page.png").size == (700, 900)
    assert Image.open(out / "pipeline.png").width > 1500
    with safe_open(out / "tokens.safetensors", "numpy") as file:
        assert file.get_tensor("tokens_0").shape == (272, 128)


def test_demo_with_the_reader_says_what_to_do_next(run, tmp_path):
    status, printed, _ = run("demo", "--reader", "--out", tmp_path / "demo")
    assert status == 0
    assert "The hub" not in printed
    assert printed.startswith("page: ")
    question = re.search(r"multipatch-jax (ask \S+page\.png) \"(.+?)\" --model multipatch/reader", printed)
    assert question
    status, answer, _ = run(*question[1].split(), question[2], "--model", "multipatch/reader")
    assert status == 0
    assert answer.strip() == "508"


def test_demo_without_the_models_files_takes_random_weights(run, tmp_path, monkeypatch):
    monkeypatch.setattr("multipatch_jax.cli.demo.load_published", lambda: None)
    monkeypatch.setitem(shipped.NAMES, "multipatch/reader", "not-there")
    monkeypatch.setattr("multipatch_jax.cli.demo.SMOLVLM_256M", TINY_SMOLVLM)
    status, printed, _ = run("demo", "--out", tmp_path / "demo")
    assert status == 0
    assert "comes with the package, and its folder" in printed
    assert "Using random weights" in printed
    status, _, errors = run("demo", "--reader", "--out", tmp_path / "other")
    assert status != 0
    assert "is missing: install multipatch_jax again" in errors
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])
def test_a_hub_that_does_not_help_is_asked_once(answer, tmp_path, monkeypatch, capfd, caplog):
    """A hub that is silent, and one that is overloaded, which the hub client would ask again and again."""
    requests, open_ones = [], []

    def serve():
        while True:
            connection = server.accept()[0]
            requests.append(connection.recv(4096).split(b" ")[0])
            connection.sendall(answer)
            open_ones.append(connection)
            if answer:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert load_published() is None
        assert requests.count(b"HEAD") <= 1
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
