"""What figures share: colours, panels of a photograph's shape, and one for its global tile."""

import importlib.util
from typing import Any

import numpy as np

from multipatch_jax.image import TilePlan

INK, FAINT, MARK = "#22222c", "#d8d8e0", "#ff4060"
COLORS = ("#3b6fb6", "#e08a2e", "#3c9d6b", "#8a5bb0")  # of series, and of the parts of a model


def require_matplotlib() -> None:
    """Raise an ImportError that says what to install if matplotlib is missing, before a long computation for a plot."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('plots need matplotlib: pip install "multipatch_jax[demo]"')


def new_figure(width: float, height: float) -> Any:
    """Make a Figure without pyplot, which would keep every figure in memory."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def set_title(axes: Any, text: str) -> None:
    """Write a title above the left edge of some axes."""
    axes.set_title(text, loc="left", fontsize=10, color=INK)


def headline(figure: Any, text: str) -> None:
    """Write a line above all of a figure."""
    figure.suptitle(text, x=0.005, ha="left", fontsize=12, color=INK)


def panel_height(plan: TilePlan) -> float:
    """Return the height of a picture in inches: at most 3.3, and so that its width is at most 5."""
    return min(3.3, 5.0 * plan.height / plan.width)


def panels(plan: TilePlan) -> tuple[Any, Any, Any, Any]:
    """Make a figure with two axes of the picture's shape, and square axes for the global tile (None without one)."""
    figure = new_figure(*panels_size(plan))
    return figure, *panels_in(figure, plan)


def panels_size(plan: TilePlan) -> tuple[float, float]:
    """Return the (width, height) of the panels of an image in inches, with room for their titles."""
    ratios = _ratios(plan)
    return max(sum(ratios) + 0.4, 5.5), max(panel_height(plan), ratios[-1]) + 1.1


def _ratios(plan: TilePlan) -> list[float]:
    height = panel_height(plan)
    width = max(height * plan.width / plan.height, 1.6)
    return [width, width] + [max(0.6 * height, 1.6)] * plan.has_global_tile


def panels_in(figure: Any, plan: TilePlan) -> tuple[Any, Any, Any]:
    """Make the axes of `panels` in a figure or a part of one."""
    ratios = _ratios(plan)
    axes = list(figure.subplots(1, len(ratios), width_ratios=ratios))
    for one in axes:
        one.set(xticks=[], yticks=[])
        one.spines[:].set_visible(False)
    return axes[0], axes[1], axes[2] if plan.has_global_tile else None


def draw_over(axes: Any, values: np.ndarray, plan: TilePlan, **options: Any) -> Any:
    """Draw a grid of any size stretched over the area of the photograph, whose pixels are the coordinates."""
    extent = (0, plan.width, plan.height, 0)
    return axes.imshow(values, extent=extent, interpolation="nearest", aspect="equal", **options)


def tile_lines(axes: Any, plan: TilePlan, color: str = "white") -> None:
    """Draw the borders between tiles over the area of the photograph."""
    for row in range(1, plan.rows):
        axes.axhline(row * plan.height / plan.rows, color=color, linewidth=0.8, alpha=0.7)
    for col in range(1, plan.cols):
        axes.axvline(col * plan.width / plan.cols, color=color, linewidth=0.8, alpha=0.7)
