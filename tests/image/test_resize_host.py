"""The host's resize against Pillow's and torch's own, in every byte; the order of the two passes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.resamplers import RESAMPLERS
from tests.helpers.images import mixed_noise
from tests.helpers.resizers import filters, pillow, pillow_12, resize_host, sides, torch_antialiased


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, filters, st.integers(0, 99))
def test_resize_equals_pillow(height, width, out_height, out_width, name, seed):
    image = mixed_noise(height, width, seed)
    size = (out_height, out_width)
    assert np.array_equal(resize_host(image, size, name, "pillow"), pillow(image, size, name))
    assert np.array_equal(resize_host(image, size, name, "pillow12"), pillow_12(image, size, name))


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, filters, st.booleans(), st.integers(0, 99))
def test_resize_equals_torch(height, width, out_height, out_width, name, contiguous, seed):
    image = mixed_noise(height, width, seed)
    size = (out_height, out_width)
    expected = torch_antialiased(image, size, name, contiguous)
    assert np.array_equal(resize_host(image, size, name, "torchvision"), expected)


def test_the_order_of_passes_is_pillows():
    """Hundreds of sizes for which the two orders give other bytes, many of them where the rule changes its answer."""
    rng = np.random.default_rng(0)
    told_apart = {False: 0, True: 0}
    for _ in range(1500):
        height, width, out_height, out_width = (int(side) for side in rng.integers(1, 90, 4))
        if rng.random() < 0.5:
            out_height = max(height - 2 * (width - out_width) + int(rng.integers(-1, 3)), 1)
        image, size = mixed_noise(height, width), (out_height, out_width)
        horizontal = pillow(pillow(image, (height, out_width), "lanczos"), size, "lanczos")
        vertical = pillow(pillow(image, (out_height, width), "lanczos"), size, "lanczos")
        if np.array_equal(horizontal, vertical):
            continue
        first = RESAMPLERS["pillow"].vertical_first((height, width), size)
        assert np.array_equal(pillow(image, size, "lanczos"), vertical if first else horizontal)
        told_apart[first] += 1
        assert not RESAMPLERS["pillow12"].vertical_first((height, width), size)
        assert not RESAMPLERS["torchvision"].vertical_first((height, width), size)
    assert min(told_apart.values()) > 200
