"""Random pixels of several kinds, and the plan of an image."""

from collections.abc import Iterator

import numpy as np

import multipatch_jax as mp


def plan_of(image: np.ndarray, tiling: mp.TilingConfig = mp.TilingConfig()) -> mp.image.TilePlan:
    height, width = image.shape[:2]
    return mp.plan_tiles(height, width, tiling)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def black_and_white(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise of two values, on which resamplers differ most."""
    return np.random.default_rng(seed).integers(0, 2, (height, width, 3), np.uint8) * 255


def mixed_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise of all values, in which a share of the pixels, another for each seed, is black or white."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    two_values = rng.random((height, width, 1)) < rng.random()
    return np.where(two_values, image // 128 * 255, image).astype(np.uint8)


def random_images(count: int, seed: int = 0, largest: int = 1500) -> Iterator[np.ndarray]:
    """Noise of random sizes, small ones as often as large ones."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = np.exp(rng.uniform(0, np.log(largest), 2)).astype(int)
        yield rng.integers(0, 256, (height, width, 3), np.uint8)
