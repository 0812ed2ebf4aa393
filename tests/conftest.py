"""What many tests share: the tiny model, a photograph and its tiles, and a count of compilations."""

import logging

import jax
import numpy as np
import pytest
from skimage import data

import multipatch_jax as mp
from tests.helpers.models import TINY, Model, make_model


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
