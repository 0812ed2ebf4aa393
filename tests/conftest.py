"""What many tests share: the tiny model, a photograph and its tiles, and a count of compilations."""

import ast
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from skimage import data

import multipatch_jax as mp
from tests.helpers.models import TINY, Model, make_model
from tests.helpers.project import ROOT


def imports_the_reference(path: Path) -> bool:
    """Whether a file, or a helper that it imports, imports torch or transformers while it is imported itself."""
    modules = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            modules |= names - {"multipatch_reference.distance"}
    helpers = [ROOT / f"{name.replace('.', '/')}.py" for name in modules | {m.rpartition(".")[0] for m in modules}]
    helpers = [one for one in helpers if one.is_file() and one.is_relative_to(ROOT / "tests/helpers") and one != path]
    tops = {name.partition(".")[0] for name in modules}
    return bool(tops & {"torch", "transformers", "multipatch_reference"}) or any(map(imports_the_reference, helpers))


# Where torch is not installed, the tests that compare with the reference are left out.
if importlib.util.find_spec("torch") is None:
    collect_ignore = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if imports_the_reference(path)]


def pytest_configure(config):
    """Run the suite on the CPU, whose bounds it has, on a machine with a GPU too; `pytest -m gpu` runs on the GPU."""
    if config.option.markexpr != "gpu":
        jax.config.update("jax_platforms", "cpu")
        share_programs(config)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes of a run share a GPU's memory


def share_programs(config):
    """Let all processes of a run, those that tests start too, find the programs that one of them has compiled.

    They are still counted as compiled (see `encode/compiles.py`), so that a test that counts them can fail.
    """
    if not hasattr(config, "workerinput") and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="multipatch-programs-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


def pytest_runtest_setup(item):
    if item.get_closest_marker("needs_gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU, and -m gpu")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Model:
    return make_model(TINY, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return data.chelsea()


@pytest.fixture(scope="session")
def tiny_tiles(photo) -> np.ndarray:
    return mp.tile_image_host(photo, TINY.tiling)


@pytest.fixture
def compilations(caplog):
    """A function that returns the messages of what XLA has compiled since it was last called."""
    logger = "jax._src.interpreters.pxla"

    def take() -> list[str]:
        names = [r.getMessage() for r in caplog.records if r.name == logger and "Compiling" in r.getMessage()]
        caplog.clear()
        return names

    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger):
        yield take
