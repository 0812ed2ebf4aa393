"""TOKENS"""

import math
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Shaped

from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan


def token_map(
    tokens: Shaped[Array, "T D"] | Shaped[np.ndarray, "T D"], plan: TilePlan, config: ModelConfig
) -> tuple[Shaped[np.ndarray, "R C D"], Shaped[np.ndarray, "t t D"] | None]:
    """The tokens at their places over the picture, and those of the global tile, if there is one.

    Args:
      tokens: of one image, as `encode_image` gives them: tiles row-major, each a t x t grid, the global tile last.
        Anything of one row per token will do: colours, similarities, numbers.
      plan: of this image. config: of the model that made the tokens.

    Returns:
      (rows * t, cols * t, D) and (t, t, D) or None. An image that is not split is one tile: (t, t, D) and None.

    Raises:
      ValueError: not as many tokens as the plan has.
    """
    tokens = check_tokens(tokens, plan)
    side = math.isqrt(config.tiling.tokens_per_tile)
    tiles = tokens.reshape(plan.num_tiles, side, side, -1)
    rows, cols = max(plan.rows, 1), max(plan.cols, 1)
    grid = tiles[: rows * cols].reshape(rows, cols, side, side, -1).swapaxes(1, 2)
    return grid.reshape(rows * side, cols * side, -1), tiles[-1] if plan.has_global_tile else None


def check_tokens(tokens: Any, plan: TilePlan) -> np.ndarray:
    """The tokens as a NumPy array, after a check that there are as many as the plan has."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or len(tokens) != plan.num_tokens:
        raise ValueError(f"tokens must be of shape ({plan.num_tokens}, D) for this plan, got {tokens.shape}.")
    return tokens


def token_at(y: float, x: float, plan: TilePlan, config: ModelConfig) -> int:
    """The index of the token, of the tiles and not the global one, that covers pixel (y, x) of the source image."""
    if not (0 <= y < plan.height and 0 <= x < plan.width):
        raise ValueError(f"Pixel ({y}, {x}) is not in an image of {plan.height} x {plan.width}.")
    numbers, _ = token_map(np.arange(plan.num_tokens)[:, None], plan, config)
    rows, cols = numbers.shape[:2]
    return int(numbers[int(y * rows / plan.height), int(x * cols / plan.width), 0])


def pca_colors(tokens: Float[Array, "T D"] | Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T 3"]:
    """The first three principal components of the tokens as red, green and blue from 0 to 1."""
    x = np.asarray(tokens, np.float32)
    x = x - x.mean(axis=0)
    _, _, components = np.linalg.svd(x, full_matrices=False)
    components = components[:3]
    largest = np.take_along_axis(components, abs(components).argmax(axis=1)[:, None], axis=1)
    projected = np.zeros((len(x), 3), np.float32)
    projected[:, : len(components)] = x @ (components * np.sign(largest)).T  # a component's sign is arbitrary: fix it
    low, high = np.percentile(projected, [1, 99], axis=0)
    return np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)


def cosine_similarity(tokens: Float[Array, "T D"] | Float[np.ndarray, "T D"], token: int) -> Float[np.ndarray, " T"]:
    """Of one token to all, itself included; the mean token, which all have in common, is taken off first."""
    x = np.asarray(tokens, np.float32)
    if not 0 <= token < len(x):
        raise ValueError(f"token must be from 0 to {len(x) - 1}, got {token}.")
    x = x - x.mean(axis=0)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x @ x[token]
