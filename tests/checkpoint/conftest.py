"""A copy of the tiny model's folder, which a test may spoil."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny.folder, tmp_path / "model"))
