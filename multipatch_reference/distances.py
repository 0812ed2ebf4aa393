"""How far two arrays are apart."""

from typing import Any

import numpy as np


def distance(ours: Any, reference: Any) -> float:
    """Return |ours - reference| / |reference| with Euclidean norms over all elements, computed in float64.

    Raises:
      ValueError: the shapes differ.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Only arrays of one shape have a distance, got {a.shape} and {b.shape}.")
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
