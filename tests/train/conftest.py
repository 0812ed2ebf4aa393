"""The step of `train_worker`'s model, compiled once for the tests of checkpoints and of the loop."""

import optax
import pytest

import multipatch_jax as mp
from tests.helpers import train_worker
from tests.helpers.training import distill


@pytest.fixture(scope="module")
def step():
    return mp.train.make_train_step(distill, optax.sgd(0.05), config=train_worker.CONFIG)
