"""Plot tiles, tokens and measurements with matplotlib (the `demo` extra).

Each function returns a matplotlib `Figure`: show it in a notebook, or write it to a file with its method `savefig`.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, UInt8

from multipatch_jax.arguments import check_array, check_image, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan
from multipatch_jax.plot.panels import (
    COLORS,
    FAINT,
    INK,
    MARK,
    draw_over,
    headline,
    new_figure,
    panel_height,
    panels,
    set_title,
    tile_lines,
)
from multipatch_jax.plot.pictures import describe
from multipatch_jax.plot.tokens import check_tokens, cosine_similarity, pca_colors, token_map

_PALE = "#a0a0b0"


def plot_tiles(
    tiles: UInt8[Array, "N M M 3"] | UInt8[np.ndarray, "N M M 3"], plan: TilePlan, pale: Collection[int] = ()
) -> Any:
    """Plot the tiles of an image as the model sees them: numbered, with gaps between, the global tile to the right.

    Args:
      tiles: of one image.
      plan: of this image.
      pale: indices of tiles to fade, such as those that a cache would not encode again.
    """
    require_type("plan", plan, TilePlan)
    check_array("tiles", tiles, (plan.num_tiles, "M", "M", 3), np.uint8)
    rows, cols = max(plan.rows, 1), max(plan.cols, 1)
    side = min(1.3, 9.0 / (cols + 1))
    figure = new_figure(max(side * (cols + 1.4 * plan.has_global_tile), 5.5), side * rows + 0.4)
    grid = figure.add_gridspec(rows, cols + 1, width_ratios=[1] * cols + [1.4 if plan.has_global_tile else 1e-3])
    for index, tile in enumerate(np.asarray(tiles)):
        place = grid[index // cols, index % cols] if index < rows * cols else grid[:, cols]
        axes = figure.add_subplot(place)
        axes.imshow(tile, alpha=0.25 if index in pale else 1.0)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(FAINT)
        name = str(index + 1) if index < rows * cols else f"{index + 1}: the whole picture"
        label = {"facecolor": _PALE if index in pale else MARK, "edgecolor": "none", "pad": 1.5}
        axes.text(0.04, 0.95, name, transform=axes.transAxes, va="top", fontsize=8, color="white", bbox=label)
    headline(figure, describe(plan))
    return figure


def plot_pca(image: UInt8[np.ndarray, "H W 3"], tokens: Any, plan: TilePlan, config: ModelConfig) -> Any:
    """Plot a photograph, and beside it its tokens at their places, coloured by their first three principal components.

    Tokens of similar colour are similar vectors. The tiles and the global tile share the components, so their colours
    can be compared.

    Args:
      image: the photograph.
      tokens: (N * T, D), as `encode_image` returns them for it.
      plan: of this image.
      config: of the model that made the tokens.
    """
    check_image(image, np.ndarray, "a NumPy array")
    tiled, whole = token_map(pca_colors(check_tokens(tokens, plan)), plan, config)
    figure, left, right, square = panels(plan)
    draw_over(left, image, plan)
    tile_lines(left, plan)
    set_title(left, "photograph")
    draw_over(right, tiled, plan)
    tile_lines(right, plan)
    set_title(right, "its tokens")
    if whole is not None:
        square.imshow(whole, interpolation="nearest")
        set_title(square, "global tile")
    headline(figure, describe(plan))
    return figure


def plot_similarity(
    image: UInt8[np.ndarray, "H W 3"], tokens: Any, plan: TilePlan, config: ModelConfig, token: int
) -> Any:
    """Plot the cosine similarity of one token, which is framed, to all tokens, over the photograph.

    Args:
      image, tokens, plan, config: as in `plot_pca`.
      token: the index of the token; `token_at` finds it for a pixel.
    """
    check_image(image, np.ndarray, "a NumPy array")
    similarity = cosine_similarity(check_tokens(tokens, plan), token)
    tiled, whole = token_map(similarity[:, None], plan, config)
    figure, left, right, square = panels(plan)
    grey = image.mean(axis=-1) / 255
    options = {"cmap": "RdYlBu_r", "vmin": -1.0, "vmax": 1.0}
    draw_over(left, image, plan)
    set_title(left, "photograph")
    draw_over(right, grey, plan, cmap="gray", vmin=0, vmax=1)
    shown = draw_over(right, tiled[..., 0], plan, alpha=0.62, **options)
    set_title(right, "similarity")
    if whole is not None:
        square.imshow(whole[..., 0], interpolation="nearest", **options)
        set_title(square, "global tile")
    numbers, global_numbers = token_map(np.arange(plan.num_tokens)[:, None], plan, config)
    rows, cols = numbers.shape[:2]
    for row, col in np.argwhere(numbers[..., 0] == token):
        for axes in (left, right):
            _frame(axes, col * plan.width / cols, row * plan.height / rows, plan.width / cols, plan.height / rows)
    if global_numbers is not None:
        for row, col in np.argwhere(global_numbers[..., 0] == token):
            _frame(square, col - 0.5, row - 0.5, 1, 1)
    inch = 1 / panel_height(plan)
    place = right.inset_axes((0, -0.25 * inch, 1, 0.12 * inch))
    bar = figure.colorbar(shown, cax=place, orientation="horizontal", ticks=(-1, 0, 1))
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    headline(figure, f"cosine similarity of token {token} (framed) to all tokens")
    return figure


def _frame(axes: Any, x: float, y: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="white", linewidth=3.5))
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=INK, linewidth=1.5))


def plot_errors(errors: Mapping[str, Mapping[str, float]], limit: float | None = None) -> Any:
    """Plot relative errors as horizontal bars on a logarithmic scale. An error of 0 is marked "exact".

    Args:
      errors: {series: {name: relative error}}. All series have the same names, which are drawn from top to bottom.
      limit: an error that is drawn as a line, for a bound that no bar should cross.
    """
    names = list(next(iter(errors.values())))
    positive = [error for series in errors.values() for error in series.values() if error > 0]
    positive += [1e-6] if limit is None else [limit]
    floor = 10.0 ** math.floor(math.log10(min(positive)) - 0.5)
    thickness = 0.8 / len(errors)
    figure = new_figure(8.0, 1.2 + 0.32 * len(names) * max(1.0, 0.6 * len(errors)))
    axes = figure.subplots()
    for number, (series, values) in enumerate(errors.items()):
        for row, name in enumerate(names):
            y, error = row + (number - (len(errors) - 1) / 2) * thickness, values[name]
            label = series if row == 0 else None
            axes.barh(y, max(error, floor), thickness * 0.9, color=COLORS[number % len(COLORS)], label=label)
            text = f" {error:.1e}" if error > 0 else " exact"
            axes.text(max(error, floor), y, text, va="center", fontsize=8, color=INK)
    if limit is not None:
        axes.axvline(limit, color=MARK, linewidth=1.2, linestyle="--", label=f"limit {limit:g}")
    axes.set(xscale="log", xlim=(floor, max(positive) * 30), ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("relative error, |a - b| / |b|")
    _plain(axes, "x")
    if len(errors) > 1 or limit is not None:
        figure.legend(loc="outside upper right", frameon=False, fontsize=9, ncols=len(errors) + 1)
    return figure


def plot_progress(finished: Mapping[str, Sequence[float]]) -> Any:
    """Plot the number of images finished over time.

    Args:
      finished: {series: for each image, in ascending order, the seconds from the start until it was finished}.
    """
    figure = new_figure(8.0, 3.4)
    axes = figure.subplots()
    for (name, seconds), color in zip(finished.items(), itertools.cycle(COLORS), strict=False):
        axes.step([0, *seconds], range(len(seconds) + 1), where="post", color=color, linewidth=2, label=name)
        axes.plot(seconds[-1], len(seconds), "o", color=color)
        axes.annotate(f"{seconds[-1]:.1f} s", (seconds[-1], len(seconds)), (0, 6), textcoords="offset points",
                      ha="center", fontsize=9, color=color)  # fmt: skip
    axes.set(xlabel="seconds", ylabel="images finished", xlim=(0, None))
    axes.set_ylim(0, max(map(len, finished.values())) * 1.12)
    axes.yaxis.get_major_locator().set_params(integer=True)
    _plain(axes, "both")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _plain(axes: Any, grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
