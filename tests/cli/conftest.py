"""The command, called in this process, and a photograph in a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multipatch_jax.cli import main


@pytest.fixture
def photo_file(photo: np.ndarray, tmp_path: Path) -> Path:
    Image.fromarray(photo).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs `multipatch-jax` with these arguments; returns (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run
