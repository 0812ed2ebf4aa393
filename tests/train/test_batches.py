"""The order of the examples."""

import numpy as np
import pytest

import multipatch_jax as mp


def test_every_epoch_has_every_example_once_and_an_order_of_its_own():
    batches = [mp.train.batch_indices(step, num_examples=20, batch_size=4, seed=1) for step in range(10)]
    epochs = np.concatenate(batches[:5]), np.concatenate(batches[5:])
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert not np.array_equal(*epochs)
    with pytest.raises(ValueError, match="A batch of 8 needs as many examples, got 7"):
        mp.train.batch_indices(0, num_examples=7, batch_size=8)
