"""The tokens that every way of encoding must give."""

import numpy as np
import pytest

import multipatch_jax as mp


@pytest.fixture(scope="session")
def tokens(tiny, tiny_tiles):
    return np.asarray(mp.encode_tiles(tiny.params, tiny_tiles, config=tiny.config))
