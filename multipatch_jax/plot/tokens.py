"""Compute what figures show of one image's tokens: their places, colours and similarities, in NumPy alone."""

import math
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Shaped

from multipatch_jax.arguments import check_array, require_integer, require_number, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan


def token_map(
    tokens: Shaped[Array, "tokens width"] | Shaped[np.ndarray, "tokens width"], plan: TilePlan, config: ModelConfig
) -> tuple[Shaped[np.ndarray, "map_rows map_cols width"], Shaped[np.ndarray, "side side width"] | None]:
    """Arrange an image's tokens at their places over the picture, and those of its global tile as a map of their own.

    A tile's tokens are a square with a side of sqrt(T), written `side` here.

    Args:
      tokens: one row for each token of an image, in the order of `encode_image`. A row may be anything: the token
        itself, a colour, a similarity, a number.
      plan: of this image.
      config: of the model that made the tokens.

    Returns:
      The map of the tiles, (rows * side, cols * side, width), and that of the global tile, (side, side, width). The
      second is None without a global tile. An image that is not split is a grid of one tile.

    Raises:
      ValueError: the number of tokens is not the plan's.
    """
    tokens = check_tokens(tokens, plan)
    require_type("config", config, ModelConfig)
    side = math.isqrt(config.tiling.tokens_per_tile)
    tiles = tokens.reshape(plan.num_tiles, side, side, -1)
    rows, cols = max(plan.rows, 1), max(plan.cols, 1)
    grid = tiles[: rows * cols].reshape(rows, cols, side, side, -1).swapaxes(1, 2)
    return grid.reshape(rows * side, cols * side, -1), tiles[-1] if plan.has_global_tile else None


def check_tokens(tokens: Any, plan: TilePlan) -> np.ndarray:
    """Return the tokens as a NumPy array; raise a ValueError unless their number is the plan's."""
    require_type("plan", plan, TilePlan)
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or len(tokens) != plan.num_tokens:
        raise ValueError(f"tokens must be of shape ({plan.num_tokens}, D) for this plan, got {tokens.shape}.")
    return tokens


def token_at(y: float, x: float, plan: TilePlan, config: ModelConfig) -> int:
    """Return the index of the token that covers pixel (y, x) of the source image; never one of the global tile.

    Raises:
      ValueError: the pixel is outside the image.
    """
    require_type("plan", plan, TilePlan)
    require_number("y", y)
    require_number("x", x)
    if not (0 <= y < plan.height and 0 <= x < plan.width):
        raise ValueError(f"Pixel ({y}, {x}) is not in an image of {plan.height} x {plan.width}.")
    numbers, _ = token_map(np.arange(plan.num_tokens)[:, None], plan, config)
    rows, cols = numbers.shape[:2]
    return int(numbers[int(y * rows / plan.height), int(x * cols / plan.width), 0])


def pca_colors(tokens: Float[Array, "tokens D"] | Float[np.ndarray, "tokens D"]) -> Float[np.ndarray, "tokens 3"]:
    """Colour the tokens by their first three principal components, as red, green and blue from 0 to 1.

    0 and 1 are the component's 1st and 99th percentiles; values beyond are clipped.
    """
    check_array("tokens", tokens, ("tokens", "D"), np.floating)
    x = np.asarray(tokens, np.float32)
    x = x - x.mean(axis=0)
    _, _, components = np.linalg.svd(x, full_matrices=False)
    components = components[:3]
    largest = np.take_along_axis(components, abs(components).argmax(axis=1)[:, None], axis=1)
    projected = np.zeros((len(x), 3), np.float32)
    projected[:, : len(components)] = x @ (components * np.sign(largest)).T  # a component's sign is arbitrary: fix it
    low, high = np.percentile(projected, [1, 99], axis=0)
    return np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)


def cosine_similarity(
    tokens: Float[Array, "tokens D"] | Float[np.ndarray, "tokens D"], token: int
) -> Float[np.ndarray, " tokens"]:
    """Compute the cosine similarity of one token to all, itself included.

    The mean of all tokens is subtracted first, because it is a direction that all tokens share.

    Args:
      token: an index.

    Raises:
      ValueError: the index is outside the tokens.
    """
    check_array("tokens", tokens, ("tokens", "D"), np.floating)
    x = np.asarray(tokens, np.float32)
    token = require_integer("token", token, 0, len(x) - 1)
    x = x - x.mean(axis=0)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x @ x[token]
