"""`multipatch-jax demo`."""

import socket
import threading

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from multipatch_jax.cli.demo import load_published
from tests.helpers.processes import python_output


def test_demo_on_random_weights_of_the_real_shapes(tmp_path):
    """The README's first command, in a process of its own: a real photograph through all of SmolVLM-256M's tower."""
    printed = python_output("-m", "multipatch_jax", "demo", "--random-weights", "--out", tmp_path / "demo")
    assert "the tokens below mean nothing" in printed
    assert "300 x 451 -> 3 x 4 tiles + global = 13 tiles, 832 tokens" in printed
    with safe_open(tmp_path / "demo" / "tokens.safetensors", "numpy") as file:
        tokens = file.get_tensor("tokens_0")
    assert tokens.shape == (832, 576)
    assert np.isfinite(tokens).all()
    assert Image.open(tmp_path / "demo" / "tiles.png").width > 1000
    assert Image.open(tmp_path / "demo" / "pca.png").width > 500


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
