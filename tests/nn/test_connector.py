"""Pixel unshuffle: one channel order among several that all give the right shape."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from multipatch_jax.nn import pixel_unshuffle


def numbered(grid, width):
    return np.arange(grid * grid * width, dtype=np.float32).reshape(grid * grid, width)


@pytest.mark.parametrize(("grid", "width", "scale"), [(32, 12, 4), (27, 8, 3), (26, 8, 2), (6, 5, 1), (4, 3, 4)])
def test_channel_order_equals_the_reference(grid, width, scale, tiny):
    x = numbered(grid, width)
    expected = tiny.reference.model.connector.pixel_shuffle(torch.from_numpy(x)[None], scale)[0]
    np.testing.assert_array_equal(pixel_unshuffle(jnp.asarray(x), scale), expected.numpy())


def test_channel_order_is_not_that_of_unfold():
    """torch's unfold and pixel_unshuffle order channels (c, dh, dw); the connector was trained on (dh, dw, c).

    Both give (P / s^2, C * s^2), so no test of shapes tells them apart. With the wrong one the projection's input
    channels are permuted, and its tokens mean nothing.
    """
    grid, width, scale = 8, 6, 4
    x = numbered(grid, width)
    image = torch.from_numpy(x).T.reshape(1, width, grid, grid)
    unfolded = torch.nn.functional.unfold(image, scale, stride=scale)[0].T.numpy()
    ours = np.asarray(pixel_unshuffle(jnp.asarray(x), scale))
    assert ours.shape == unfolded.shape
    assert not np.array_equal(ours, unfolded)
    reordered = unfolded.reshape(-1, width, scale * scale).swapaxes(1, 2).reshape(unfolded.shape)
    np.testing.assert_array_equal(ours, reordered)


@pytest.mark.parametrize(("tokens", "scale"), [(25, 2), (60, 2), (27 * 27, 4)])
def test_a_grid_that_does_not_fit_is_refused(tokens, scale):
    with pytest.raises(ValueError, match=f"side that {scale} divides, got {tokens} tokens"):
        pixel_unshuffle(jnp.zeros((tokens, 3)), scale)
