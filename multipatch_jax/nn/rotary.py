"""Rotary positions: the angles of positions, and the rotation of queries and keys by them."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from multipatch_jax.config import TextConfig


def inverse_frequencies(config: TextConfig) -> Float32[np.ndarray, " d//2"]:
    """Return the angle that each pair of channels turns by from one position to the next, in radians.

    With `config.rope_scaling`, slow pairs turn `factor` times slower: those whose full turn takes more than
    `original_max_position_embeddings / low_freq_factor` positions. Pairs whose turn takes fewer than
    `original_max_position_embeddings / high_freq_factor` stay as they are, and those between are interpolated.
    """
    # Every step is rounded to float32 as in the reference: at position 8000 a frequency that is one bit off turns a
    # pair by up to 5e-4. The power is the nearest number. The reference's is in all but a few cases, such as 2 of the
    # 32 powers of theta 273768.
    one = np.float32(1)
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = one / np.power(config.rope_theta, exponents.astype(np.float64)).astype(np.float32)
    if config.rope_scaling is None:
        return frequencies
    factor, low, high, length, _ = dataclasses.astuple(config.rope_scaling)
    turn = one / frequencies * np.float32(2 * math.pi)  # positions of a full turn
    smooth = (one / turn * np.float32(length) - np.float32(low)) / np.float32(high - low)
    between = (one - smooth) * frequencies / np.float32(factor) + smooth * frequencies
    slow = frequencies / np.float32(factor)
    is_slow, is_fast = turn > np.float32(length / low), turn < np.float32(length / high)
    return np.where(is_slow, slow, np.where(is_fast, frequencies, between))


def rotary_angles(
    position_ids: Int[Array, "B S"], config: TextConfig
) -> tuple[Float32[Array, "B S d//2"], Float32[Array, "B S d//2"]]:
    """Return cosine and sine of every pair's angle at every position, in float32 whatever the computation's dtype."""
    angles = position_ids.astype(jnp.float32)[..., None] * inverse_frequencies(config)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B S heads d"], cos: Float32[Array, "B S d//2"], sin: Float32[Array, "B S d//2"]
) -> Float[Array, "B S heads d"]:
    """Rotate the pairs of channels (i, i + d/2) of every head by their angles. It computes in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
