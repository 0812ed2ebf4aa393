"""Show the plan of an image without matplotlib: its tiles drawn on the picture by Pillow, and a line of text."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from multipatch_jax.arguments import check_image, require_positive, require_type
from multipatch_jax.image import TilePlan

_LINE, _INK, _PAPER = (255, 64, 96), (20, 20, 28), (250, 250, 252)


def draw_tiles(image: UInt8[np.ndarray, "H W 3"], plan: TilePlan, *, longest_edge: int = 1024) -> Image.Image:
    """Draw the borders and numbers of an image's tiles on it, with the global tile, if any, to the right.

    The global tile is squashed to a square, as the model sees it. A line of text below describes the plan.

    Args:
      image: the source pixels.
      plan: of this image.
      longest_edge: pixels of the longer side of the drawn image, without the global tile and the text.
    """
    check_image(image, np.ndarray, "a NumPy array")
    require_type("plan", plan, TilePlan)
    longest_edge = require_positive("longest_edge", longest_edge, "pixels")
    scale = longest_edge / max(plan.height, plan.width)
    width, height = max(round(plan.width * scale), 1), max(round(plan.height * scale), 1)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    rows, cols = max(plan.rows, 1), max(plan.cols, 1)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(min(width // cols, height // rows) // 8, 10))
    for row in range(rows):
        for col in range(cols):
            box = [col * width // cols, row * height // rows, (col + 1) * width // cols, (row + 1) * height // rows]
            draw.rectangle(box, outline=_LINE, width=2)
            _label(draw, (box[0] + 6, box[1] + 6), str(row * cols + col + 1), font)
    if not plan.has_global_tile:
        return _captioned(picture, plan)
    side = max(min(longest_edge // 4, height), 96)
    thumbnail = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(thumbnail)
    draw.rectangle([0, 0, side - 1, side - 1], outline=_LINE, width=2)
    _label(draw, (6, 6), f"{plan.num_tiles}", font)
    sheet = Image.new("RGB", (width + 12 + side, max(height, side)), _PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(thumbnail, (width + 12, 0))
    return _captioned(sheet, plan)


def _label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: Any) -> None:
    """Write a text at a place (x, y), on a filled box."""
    left, top, right, bottom = draw.textbbox(place, text, font=font)
    draw.rectangle([left - 4, top - 4, right + 4, bottom + 4], fill=_LINE)
    draw.text(place, text, fill=_PAPER, font=font)


def _captioned(picture: Image.Image, plan: TilePlan) -> Image.Image:
    """Return the picture with a description of the plan below it."""
    font = ImageFont.load_default(size=18)
    sheet = Image.new("RGB", (max(picture.width, 480), picture.height + 36), _PAPER)
    sheet.paste(picture, (0, 0))
    ImageDraw.Draw(sheet).text((8, picture.height + 7), describe(plan), fill=_INK, font=font)
    return sheet


def describe(plan: TilePlan) -> str:
    """Describe a plan in one line, such as "3000 x 4000 -> 3 x 4 tiles + global = 13 tiles, 832 tokens"."""
    require_type("plan", plan, TilePlan)
    grid = f"{plan.rows} x {plan.cols} tiles" if plan.rows else "not split"
    tiles = "1 tile" if plan.num_tiles == 1 else f"{plan.num_tiles} tiles"
    plus = " + global" if plan.has_global_tile else ""
    return f"{plan.height} x {plan.width} -> {grid}{plus} = {tiles}, {plan.num_tokens} tokens"
