"""`multipatch-jax demo`."""

import numpy as np
from PIL import Image
from safetensors import safe_open

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
