"""Memory that JAX takes as a CPU's array without copying it."""

import numpy as np


def aligned(image: np.ndarray) -> np.ndarray:
    """A copy of the image at an address that 64 divides."""
    memory = np.empty(image.size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    result = memory[start : start + image.size].reshape(image.shape)
    result[:] = image
    return result
