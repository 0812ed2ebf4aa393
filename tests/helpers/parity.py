"""Compare ours with the float32 reference by their distances from the float64 reference."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.models import Model


def assert_float32_parity(ours: Any, reference32: Any, reference64: Any) -> None:
    mine, theirs = distance(ours, reference64), distance(reference32, reference64)
    assert mine <= tolerances.FLOAT32_RATIO * theirs, f"{mine:.2e} from float64, the reference {theirs:.2e}"
    assert mine <= tolerances.FLOAT32_CEILING


def some_tiles(photo: np.ndarray, config: mp.ModelConfig, count: int) -> np.ndarray:
    """The last tiles of a real photograph: some crops, and the global one."""
    return mp.tile_image_host(photo, config.tiling)[-count:]


def normalised(tiles: np.ndarray) -> np.ndarray:
    return np.asarray(mp.image.normalize(jnp.asarray(tiles)))


def check_model(model: Model, tiles: np.ndarray, compute: mp.Compute = mp.Compute()) -> None:
    """Asserts float32 parity of the tower's features and of the visual tokens."""
    pixels = normalised(tiles)
    features32, tokens32 = reference.image_features(model.reference, pixels)
    features64, tokens64 = reference.image_features(model.reference.double(), pixels)
    model.reference.float()
    features = mp.vision_features(model.params, pixels, config=model.config, compute=compute)
    assert_float32_parity(features, features32, features64)
    tokens = mp.encode_tiles(model.params, tiles, config=model.config, compute=compute)
    assert tokens.shape == (len(tiles), model.config.tiling.tokens_per_tile, model.config.connector.text_hidden_size)
    assert_float32_parity(tokens, tokens32, tokens64)
