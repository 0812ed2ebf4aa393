"""A photograph and its tokens."""

import pytest

import multipatch_jax as mp
from tests.helpers.images import plan_of


@pytest.fixture(scope="module")
def encoded(tiny, photo):
    plan = plan_of(photo, tiny.config.tiling)
    return photo, mp.encode_image(tiny.params, photo, config=tiny.config), plan, tiny.config
