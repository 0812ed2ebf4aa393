"""Plot the way of a picture to an answer: tiles, tower, pixel unshuffle, tokens, prompt (the `demo` extra)."""

import math
from typing import Any

import numpy as np
from jaxtyping import UInt8

from multipatch_jax.arguments import check_image, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan, plan_tiles, tile_image_host
from multipatch_jax.plot.panels import new_figure
from multipatch_jax.plot.sketches import Sheet, clipped, unshuffle_colors
from multipatch_jax.plot.tokens import check_tokens, pca_colors

WIDTH, HEIGHT = 13.2, 6.5  # inches, which are the units of every place below
PICTURES = (3.35, 2.4)  # where the upper row's pictures begin, and how high they are
MIDDLE = PICTURES[0] + PICTURES[1] / 2  # of their heights, where the arrows between them are
PROMPT = (0.4, 1.5)  # the same of the lower row
_PLACE = "<image>"


def plot_pipeline(
    image: UInt8[np.ndarray, "H W 3"], tokens: Any, config: ModelConfig, *, prompt: str, answer: str
) -> Any:
    """Plot how a picture becomes an answer, with the sizes at each step.

    The upper row is the picture, its tiles, the vision tower, the pixel unshuffle, and the tokens, coloured by their
    first three principal components. The lower row is the prompt, the text decoder, and the answer.

    Args:
      image: the picture.
      tokens: (N * T, D), as `encode_image` returns them for it.
      config: of the model that made the tokens and the answer.
      prompt: what the model was asked, such as `Processor.render` returns it. The tokens are drawn at its first
        `<image>`; without one they come first.
      answer: what the model said.

    Raises:
      ValueError: an argument has another shape, dtype or kind.
    """
    check_image(image, np.ndarray, "a NumPy array")
    require_type("config", config, ModelConfig)
    require_type("prompt", prompt, str)
    require_type("answer", answer, str)
    plan = plan_tiles(image.shape[0], image.shape[1], config.tiling)
    colors = pca_colors(check_tokens(tokens, plan))
    figure = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")
    sheet = Sheet(figure.add_axes((0, 0, 1, 1)), WIDTH, HEIGHT)
    _draw_picture(sheet, image)
    _draw_tiles(sheet, image, plan, config)
    _draw_tower(sheet, config)
    _draw_unshuffle(sheet, config)
    _draw_tokens(sheet, colors, plan, config)
    _draw_answer(sheet, colors, config, prompt, answer)
    return figure


def _title(sheet: Sheet, x: float, title: str, *lines: str) -> None:
    """Write a step's name above a picture of the upper row, and its sizes below."""
    low, height = PICTURES
    sheet.write(x, low + height + 0.2, title, size=13, weight="bold", va="bottom")
    sheet.write(x, low - 0.14, "\n".join(lines), size=9.5, color=sheet.grey, va="top", linespacing=1.5)


def _draw_picture(sheet: Sheet, image: np.ndarray) -> None:
    low, height = PICTURES
    scale = min(2.0 / image.shape[1], height / image.shape[0])
    size = (image.shape[1] * scale, image.shape[0] * scale)
    sheet.picture(0.3 + (2.0 - size[0]) / 2, low + (height - size[1]) / 2, *size, image)
    _title(sheet, 1.3, "image", f"{image.shape[0]} x {image.shape[1]} pixels")


def _tile_places(plan: TilePlan, left: float, width: float) -> list[tuple[float, float, float]]:
    """Return (x, y, side) of each tile in a picture of the upper row, the global tile at the right."""
    low, height = PICTURES
    rows, cols = max(plan.rows, 1), max(plan.cols, 1)
    share = 0.72 * width if plan.has_global_tile else width
    step = min(share / cols, height / rows)
    x, y = left + (share - step * cols) / 2, MIDDLE + step * rows / 2
    places = [(x + col * step, y - (row + 1) * step, 0.92 * step) for row in range(rows) for col in range(cols)]
    side = 0.22 * width
    return [*places, (left + width - side, low + (height - side) / 2, side)] if plan.has_global_tile else places


def _draw_tiles(sheet: Sheet, image: np.ndarray, plan: TilePlan, config: ModelConfig) -> None:
    sheet.arrow(2.4, 2.8, MIDDLE)
    for (x, y, side), tile in zip(_tile_places(plan, 2.95, 2.9), tile_image_host(image, config.tiling), strict=True):
        sheet.picture(x, y, side, side, tile, edge=sheet.faint)
    count = "1 tile" if plan.num_tiles == 1 else f"{plan.num_tiles} tiles"
    grid = f"{plan.rows} x {plan.cols}" if plan.rows else "not split"
    parts = f"{grid}, and the whole image" if plan.has_global_tile else grid
    side = config.tiling.tile_size
    _title(sheet, 4.4, "tiles", f"{count} of {side} x {side} pixels", parts)


def _draw_tower(sheet: Sheet, config: ModelConfig) -> None:
    low, height = PICTURES
    sheet.arrow(5.98, 6.38, MIDDLE)
    sheet.layers(6.52, low + 0.25, 1.15, height - 0.5, config.vision.num_hidden_layers, sheet.blue)
    grid = config.tiling.tile_size // config.vision.patch_size
    size = f"{config.vision.num_hidden_layers} layers of width {config.vision.hidden_size}"
    _title(sheet, 7.1, "vision tower", f"{grid} x {grid} patches a tile", size)


def _draw_unshuffle(sheet: Sheet, config: ModelConfig) -> None:
    scale, width = config.connector.scale_factor, config.vision.hidden_size
    grid = config.tiling.tile_size // config.vision.patch_size
    side = math.isqrt(config.tiling.tokens_per_tile)
    before, after = unshuffle_colors(grid, scale)
    sheet.arrow(7.82, 8.22, MIDDLE)
    sheet.picture(8.34, MIDDLE - 0.48, 0.96, 0.96, before)
    sheet.arrow(9.37, 9.6, MIDDLE)
    sheet.picture(9.67, MIDDLE - 0.34, 0.68, 0.68, after)
    sheet.write(8.82, MIDDLE + 0.54, f"{grid} x {grid}", size=9, color=sheet.grey, va="bottom")
    sheet.write(10.01, MIDDLE + 0.4, f"{side} x {side}", size=9, color=sheet.grey, va="bottom")
    merged = (f"{scale} x {scale} patches make one token:", f"{scale**2} · {width} = {scale**2 * width:,} numbers,")
    _title(sheet, 9.34, "pixel unshuffle", *merged, f"projected to {config.connector.text_hidden_size}")


def _draw_tokens(sheet: Sheet, colors: np.ndarray, plan: TilePlan, config: ModelConfig) -> None:
    sheet.arrow(10.47, 10.77, MIDDLE)
    side = math.isqrt(config.tiling.tokens_per_tile)
    squares = colors.reshape(plan.num_tiles, side, side, 3)
    for (x, y, size), square in zip(_tile_places(plan, 10.88, 2.1), squares, strict=True):
        sheet.picture(x, y, size, size, square)
    width = config.connector.text_hidden_size
    _title(sheet, 11.93, "visual tokens", f"{plan.num_tokens:,} of width {width}", f"{side} x {side} a tile")


def _draw_answer(sheet: Sheet, colors: np.ndarray, config: ModelConfig, prompt: str, answer: str) -> None:
    """Draw the lower row."""
    low, height = PROMPT
    middle, top = low + height / 2, low + height
    before, _, after = prompt.partition(_PLACE) if _PLACE in prompt else ("", "", prompt)
    sheet.box(0.3, low, 6.6, height)
    sheet.write(0.3, top + 0.12, "prompt", size=13, weight="bold", ha="left", va="bottom")
    lines = [clipped(before, 44, 1), "", *clipped(after.replace(_PLACE, "▦"), 72, 3).splitlines()]
    for row, text in enumerate(lines):
        sheet.write(0.5, top - 0.22 - 0.27 * row, text, size=10, family="monospace", ha="left", va="center")
    chips = colors[np.linspace(0, len(colors) - 1, min(len(colors), 50)).astype(int)]
    step = 5.0 / len(chips)
    for index, color in enumerate(chips):
        sheet.box(0.5 + step * index, top - 0.56, 0.85 * step, 0.14, face=color, edge="none")
    sheet.write(5.6, top - 0.49, f"{len(colors):,} tokens", size=9.5, color=sheet.grey, ha="left", va="center")
    sheet.elbow((11.93, PICTURES[0] - 0.68), (4.98, top - 0.38), top + 0.55)

    sheet.arrow(7.02, 7.42, middle)
    count = 4 if config.text is None else config.text.num_hidden_layers
    size = "" if config.text is None else f"{count} layers of width {config.text.hidden_size}"
    sheet.layers(7.75, low + 0.1, 1.15, height - 0.2, count, sheet.orange)
    sheet.write(8.33, top + 0.12, "text decoder", size=13, weight="bold", va="bottom")
    sheet.write(8.33, low - 0.1, size, size=9.5, color=sheet.grey, va="top")

    sheet.arrow(9.2, 9.6, middle)
    sheet.box(9.75, low, 3.15, height, face="#fff4f6", edge=sheet.mark)
    sheet.write(9.75, top + 0.12, "answer", size=13, weight="bold", ha="left", va="bottom")
    is_short = len(answer) <= 16
    sheet.write(11.33, middle, clipped(answer, 32, 5), size=20 if is_short else 11, weight="bold", va="center")
