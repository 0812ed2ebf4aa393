"""Change the tensors of a checkpoint; compare checkpoints bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import multipatch_jax as mp

ALL = ("vision", "connector", "text")


def change_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Rewrites a folder's tensors; `edit` changes the dict of them."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same_params(a: dict[str, Any], b: dict[str, Any]) -> None:
    a, b = mp.params.flatten(a), mp.params.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


def assert_same_files(a: Path, b: Path) -> None:
    """Compares the tensors of two Hugging Face folders."""
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].tobytes() == second[name].tobytes(), name
