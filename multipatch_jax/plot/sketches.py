"""Draw boxes, arrows and pictures on a sheet whose units are inches; what `plot_pipeline` is made of."""

import colorsys
import textwrap
from typing import Any

import numpy as np
from jaxtyping import Float

from multipatch_jax.plot.panels import COLORS, FAINT, INK, MARK


class Sheet:
    """Axes that cover a figure, from (0, 0) at its lower left, in inches."""

    grey, faint, blue, orange, mark = "#6a6a78", FAINT, *COLORS[:2], MARK

    def __init__(self, axes: Any, width: float, height: float):
        """Take the whole of `axes`, of a figure of this size."""
        self._axes = axes
        axes.set(xlim=(0, width), ylim=(0, height), autoscale_on=False)
        axes.axis("off")

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write a text, centred unless `style` says otherwise. A "$" is a "$", not the beginning of a formula."""
        style = {"ha": "center", "color": INK, "parse_math": False, **style}
        self._axes.text(x, y, text, **style)

    def picture(self, x: float, y: float, width: float, height: float, values: Any, edge: str | None = None) -> None:
        """Draw an array of colours at a place, its lower left corner, with a frame in the colour `edge`."""
        small = len(values) < 100  # squares that are to be seen as such
        extent = (x, x + width, y, y + height)
        options = {"interpolation": "nearest" if small else "antialiased", "aspect": "auto"}
        self._axes.imshow(np.asarray(values), extent=extent, **options)
        if edge is not None:
            self.box(x, y, width, height, face="none", edge=edge, width_of_line=0.6)

    def box(
        self, x: float, y: float, width: float, height: float, *, face: Any = "#f6f6f9", edge: Any = None,
        width_of_line: float = 1.0,
    ) -> None:  # fmt: skip
        """Draw a rectangle; `edge` is faint by default."""
        from matplotlib.patches import Rectangle

        edge = self.faint if edge is None else edge
        self._axes.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, linewidth=width_of_line))

    def arrow(self, start: float, end: float, y: float) -> None:
        """Draw an arrow to the right, at the height `y`."""
        self._arrow((start, y), (end, y), "arc3")

    def elbow(self, start: tuple[float, float], end: tuple[float, float], y: float) -> None:
        """Draw an arrow that goes down to the height `y`, along it, and down again."""
        self._axes.plot([start[0], start[0], end[0]], [start[1], y, y], color=self.grey, linewidth=1.4)
        self._arrow((end[0], y), end, "arc3")

    def _arrow(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        options = {"arrowstyle": "-|>", "color": self.grey, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
        self._axes.annotate("", end, start, arrowprops={**options, "connectionstyle": style})

    def layers(self, x: float, y: float, width: float, height: float, count: int, color: str) -> None:
        """Draw the layers of a network as bars, from the bottom up: as many as there are, and at most 12."""
        count = min(count, 12)
        step = height / count
        for index in range(count):
            self.box(x, y + (index + 0.11) * step, width, 0.78 * step, face=f"{color}40", edge=color)


def clipped(text: str, columns: int, rows: int) -> str:
    """Return a text in at most so many rows and columns; an ellipsis marks what is left out."""
    lines = [row for line in text.splitlines() for row in textwrap.wrap(line, columns) or [""]]
    if len(lines) <= rows:
        return "\n".join(lines)
    return "\n".join([*lines[: rows - 1], lines[rows - 1][: columns - 1] + "…"])


def unshuffle_colors(
    grid: int, scale: int
) -> tuple[Float[np.ndarray, "grid grid 3"], Float[np.ndarray, "side stripes 3"]]:
    """Return colours that show a pixel unshuffle: a patch's colour is its place in its block of scale x scale patches.

    Args:
      grid: patches on a side of a tile.
      scale: patches on a side of a block.

    Returns:
      The patches, (grid, grid, 3); and the tokens, (grid / scale, grid, scale...), each with a stripe for each of the
      patches that are side by side in it.
    """
    count = scale**2
    hues = np.array([colorsys.hsv_to_rgb(0.55 + 0.5 * index / count, 0.45, 0.92) for index in range(count)])
    block = hues.reshape(scale, scale, 3)
    side = grid // scale
    return np.tile(block, (side, side, 1)), np.tile(hues[None], (side, side, 1))
