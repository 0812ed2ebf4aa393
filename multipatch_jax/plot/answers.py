"""Plot what a model says of a picture with its tiles, and of the global tile alone (the `demo` extra)."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from multipatch_jax.arguments import check_array, check_image, require_type
from multipatch_jax.image import TilePlan
from multipatch_jax.plot.panels import INK, draw_over, new_figure, panel_height, set_title, tile_lines


def plot_answers(
    image: UInt8[np.ndarray, "H W 3"],
    global_tile: UInt8[np.ndarray, "M M 3"],
    plan: TilePlan,
    answers: tuple[str, str],
) -> Any:
    """Plot a picture with the borders of its tiles, and its global tile as the model sees it, above their answers.

    Args:
      image: the picture.
      global_tile: the last of its tiles.
      plan: of this image.
      answers: with the tiles, and from the global tile alone.

    Raises:
      ValueError: an argument has another shape or dtype, or is of another kind.
    """
    check_image(image, np.ndarray, "a NumPy array")
    check_array("global_tile", global_tile, ("M", "M", 3), np.uint8)
    require_type("plan", plan, TilePlan)
    height = panel_height(plan)
    width = height * plan.width / plan.height
    figure = new_figure(max(width + height + 0.4, 6.0), height + 1.0)
    left, right = figure.subplots(1, 2, width_ratios=[width, height])
    draw_over(left, image, plan)
    tile_lines(left, plan, color=INK)
    set_title(left, f"with its {plan.num_tiles} tiles")
    right.imshow(global_tile)
    set_title(right, "from the global tile alone")
    for axes, answer in zip((left, right), answers, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f'"{answer}"', fontsize=12, color=INK)
    return figure
