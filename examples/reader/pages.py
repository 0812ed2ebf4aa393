"""Draw pages of handwritten numbers from real scans: scikit-learn's digits, of which every fourth is held out.

A page is described in units: its longer side is 256 of them, which is also what the model's resize makes of it. A digit
is about 14 units high. It can be read in the tiles, and not in the global tile, where it is 3 or 4 pixels high.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

Generator = np.random.Generator
UNITS = 256  # the longer side of a page
HEIGHT = (12.5, 16.5)  # of a digit
ADVANCE = (0.72, 0.95)  # from one digit to the next, in heights
LEADING = 1.35  # from one line to the next, in heights; at the least
MARGIN = 3.0
MOST_TRIES = 200


@dataclasses.dataclass(frozen=True)
class Content:
    """How much is on a page.

    Attributes:
      digits: most digits of all numbers together. Their sum is drawn evenly, from 1 on.
      numbers: most numbers, one a line. None fills the lines that the page has.
      longest: most digits of a number.
      full: whether the length of each number is drawn evenly, and not the sum; a page then has many more digits.
    """

    digits: int
    numbers: int | None
    longest: int = 6
    full: bool = False


FEW = Content(digits=6, numbers=3)
MANY = Content(digits=14, numbers=5)
DENSE = Content(digits=60, numbers=8, longest=12, full=True)  # to learn the order of reading: many labels a page
FULL = Content(digits=999, numbers=None, longest=99, full=True)  # to learn the shapes of digits


@dataclasses.dataclass(frozen=True)
class Page:
    """A page and what is on it.

    Attributes:
      pixels: of the page.
      numbers: from top to bottom.
      centres: x and y of the centre of each digit, as fractions of the width and the height, in reading order.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    numbers: tuple[str, ...]
    centres: Float[np.ndarray, "digits 2"]


@functools.cache
def scans(held_out: bool) -> tuple[Float32[np.ndarray, "number 8 8"], ...]:
    """Return the scans of each digit, 0 to 9, with ink from 0 to 1: every fourth scan, or the other three."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    chosen = (np.arange(len(data.target)) % 4 == 3) == held_out
    images = (data.images / 16).astype(np.float32)
    return tuple(images[chosen & (data.target == digit)] for digit in range(10))


def random_page(rng: Generator, height: int, width: int, *, content: Content = FEW, held_out: bool = False) -> Page:
    """Draw a page with random numbers at random places.

    Raises:
      ValueError: the page is too narrow for any number of `content`.
    """
    scale = max(height, width) / UNITS
    for _ in range(MOST_TRIES):
        digit, advance = rng.uniform(*HEIGHT), rng.uniform(*ADVANCE)
        lines = int((height / scale - 2 * MARGIN) / (digit * LEADING))
        most = int((width / scale - 2 * MARGIN - digit) / (digit * advance)) + 1
        numbers = _random_numbers(rng, content, lines, most)
        if numbers and max(map(len, numbers)) <= most:
            break
    else:
        raise ValueError(f"A page of {height} x {width} pixels is too narrow for a number.")
    return draw_page(rng, height, width, numbers, digit=digit, advance=advance, held_out=held_out)


def _random_numbers(rng: Generator, content: Content, lines: int, most: int) -> tuple[str, ...]:
    """Return random numbers for at most `lines` lines of `most` digits; () where what was drawn does not fit."""
    if content.full:
        count = lines if content.numbers is None else int(rng.integers(1, content.numbers + 1))
        lengths = rng.integers(1, max(min(content.longest, most), 1) + 1, count)
        lengths = lengths[np.cumsum(lengths) <= content.digits]
    else:
        digits = int(rng.integers(1, content.digits + 1))
        count = int(rng.integers(1, min(content.numbers or lines, digits) + 1))
        cuts = np.sort(rng.choice(np.arange(1, digits), count - 1, replace=False)) if count > 1 else ()
        lengths = np.diff([0, *cuts, digits])
    if len(lengths) > lines or max(lengths, default=0) > content.longest:
        return ()
    return tuple(_random_number(rng, int(length)) for length in lengths)


def _random_number(rng: Generator, length: int) -> str:
    first = rng.integers(1 if length > 1 else 0, 10)
    return str(first) + "".join(map(str, rng.integers(0, 10, length - 1)))


def draw_page(
    rng: Generator,
    height: int,
    width: int,
    numbers: tuple[str, ...],
    *,
    digit: float = 14.0,
    advance: float = 0.82,
    held_out: bool = False,
) -> Page:
    """Draw a page with these numbers, one a line, at random places.

    Args:
      digit: height of a digit, in units.
      advance: from one digit to the next, in heights of a digit.
    """
    scale = max(height, width) / UNITS
    tall, wide = height / scale, width / scale
    line = digit * LEADING
    room = tall - 2 * MARGIN - line * len(numbers)
    tops = MARGIN + np.sort(rng.uniform(0, max(room, 0), len(numbers))) + line * np.arange(len(numbers))
    ink, centres = np.zeros((height, width), np.float32), []
    for number, top in zip(numbers, tops, strict=True):
        length = digit * (1 + advance * (len(number) - 1))
        left = rng.uniform(MARGIN, max(wide - MARGIN - length, MARGIN + 1e-3))
        for index, name in enumerate(number):
            x = left + digit * (0.5 + advance * index + rng.normal(0, 0.015))
            y = top + digit * (0.5 * LEADING + rng.normal(0, 0.03))
            centres.append((x / wide, y / tall))
            _add_digit(rng, ink, scans(held_out)[int(name)], x * scale, y * scale, digit * scale)
    return Page(_on_paper(rng, ink), numbers, np.array(centres))


def _add_digit(rng: Generator, ink: Any, choices: Any, x: float, y: float, size: float) -> None:
    """Draw one of the scans of a digit, a little turned, slanted and stretched, into the ink of a page."""
    scan = choices[rng.integers(len(choices))]
    padded = np.pad(np.rint(scan * 255).astype(np.uint8), 2)
    side = int(np.ceil(size * 1.3))
    top, left = round(y - side / 2), round(x - side / 2)
    angle, slant = rng.normal(0, 0.06), rng.normal(0, 0.08)
    grow = rng.uniform(0.92, 1.08, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # From a pixel of the page to one of the scan.
    matrix = turn @ np.array([[1, slant], [0, 1]]) @ np.diag(8 / (size * grow))
    offset = 6 - matrix @ np.array([x - left, y - top])
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    drawn = Image.fromarray(padded).transform(
        (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    patch = np.asarray(drawn, np.float32) / 255
    rows, columns = (slice(max(at, 0), max(at + side, 0)) for at in (top, left))
    part = ink[rows, columns]  # less than the whole digit at the edge of a page
    height, width = part.shape
    seen = patch[rows.start - top :, columns.start - left :][:height, :width]
    np.maximum(part, seen, out=part)


def _on_paper(rng: Generator, ink: Float32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of ink on paper: a colour each, light that falls off to one side, and noise."""
    height, width = ink.shape
    paper, colour = rng.uniform(190, 255) + rng.uniform(-12, 0, 3), rng.uniform(0, 70, 3)
    darkness = rng.uniform(0.75, 1.0)
    slope = rng.uniform(-0.12, 0.12, 2)
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height)[:, None]
    light = 1 - np.abs(slope).sum() + (slope[0] * across + slope[1] * down).astype(np.float32)
    cover = (ink * darkness)[..., None]
    pixels = (paper * (1 - cover) + colour * cover).astype(np.float32) * light[..., None]
    pixels += rng.standard_normal((height, width, 1), np.float32) * rng.uniform(0, 8)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def random_size(rng: Generator, shortest: int, longest: int) -> tuple[int, int]:
    """Return the height and width of a page, each between the two bounds."""
    height, width = rng.integers(shortest, longest + 1, 2)
    return int(height), int(width)
