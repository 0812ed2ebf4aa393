"""Plot what an answer looked at, over the photographs (the `demo` extra)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from multipatch_jax.arguments import require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan, load_image, plan_tiles
from multipatch_jax.plot.panels import draw_over, headline, new_figure, panels_in, panels_size, set_title, tile_lines
from multipatch_jax.plot.tokens import check_tokens, token_map

_GREY = {"cmap": "gray", "vmin": 0, "vmax": 1}


def plot_saliency(images: Sequence[Any], saliency: Sequence[Any], config: ModelConfig) -> Any:
    """Plot photographs, and how strongly an answer depends on each of their tokens, at the tokens' places.

    A row is a photograph: as it is, with its tiles under the numbers, and the global tile, which is the whole picture,
    under its own. All have one scale, from 0 (clear) to the largest number.

    Args:
      images: anything that `load_image` takes.
      saliency: for each image its numbers, as `Generator.explain` returns them.
      config: the model's.

    Raises:
      ValueError: there is no image, or the numbers are not those of the images.
    """
    require_type("config", config, ModelConfig)
    pictures = [load_image(image) for image in images]
    if not pictures or len(pictures) != len(saliency):
        raise ValueError(
            f"saliency must have an array for each of at least one image, got {len(saliency)} arrays and "
            f"{len(pictures)} images."
        )
    plans = [plan_tiles(picture.shape[0], picture.shape[1], config.tiling) for picture in pictures]
    numbers = [check_tokens(np.asarray(one)[:, None], plan) for one, plan in zip(saliency, plans, strict=True)]
    most = max(float(one.max()) for one in numbers) or 1.0  # no scale ends at 0
    sizes = [panels_size(plan) for plan in plans]
    figure = new_figure(max(width for width, _ in sizes), sum(height for _, height in sizes))
    rows = figure.subfigures(len(plans), 1, height_ratios=[height for _, height in sizes], squeeze=False)[:, 0]
    for row, picture, one, plan in zip(rows, pictures, numbers, plans, strict=True):
        _draw_row(row, picture, one / most, plan, config)
    headline(figure, "what the answer looked at")
    return figure


def _draw_row(figure: Any, picture: np.ndarray, numbers: np.ndarray, plan: TilePlan, config: ModelConfig) -> None:
    """Draw one photograph, and its numbers from 0 to 1."""
    left, right, square = panels_in(figure, plan)
    tiled, whole = token_map(numbers, plan, config)
    grey = picture.mean(axis=-1) / 255
    draw_over(left, picture, plan)
    set_title(left, "photograph")
    draw_over(right, grey, plan, **_GREY)
    draw_over(right, _heat(tiled), plan)
    tile_lines(right, plan)
    set_title(right, "its tiles" if plan.rows else "its tile")
    if whole is not None:
        side = len(whole)
        extent = (0, side, side, 0)
        square.imshow(grey, extent=extent, aspect="auto", **_GREY)
        square.imshow(_heat(whole), extent=extent, interpolation="nearest")
        set_title(square, "global tile")


def _heat(numbers: np.ndarray) -> np.ndarray:
    """Return colours with opacities (rows, cols, 4) of numbers (rows, cols, 1) from 0 to 1."""
    from matplotlib import colormaps

    colors = colormaps["inferno"](0.25 + 0.75 * numbers[..., 0])
    colors[..., 3] = 0.85 * np.sqrt(numbers[..., 0])
    return colors
