"""The geometry of an image's tiles, from its height and width alone: pure integers, no pixels.

The arithmetic is the reference's (`Idefics3ImageProcessor`, transformers 5.23), float64 divisions and truncations
included, because a rounding done otherwise is a wrong number of `<image>` tokens for some sizes.
"""

import dataclasses
import math

from multipatch_jax.arguments import require_positive
from multipatch_jax.config import TilingConfig

MAX_IMAGE_SIZE = 4096  # the reference never resizes a side beyond this


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """What happens to one image. Sizes are (height, width) in pixels.

    Attributes:
      height, width: the source.
      resized: size after resize 1, which keeps the aspect ratio.
      stretched: size after resize 2, multiples of the tile size: what the tiles are cut from.
      rows, cols: the grid; both 0 when the image is one tile and not split, as in the reference.
      num_tiles: tiles, the global one included.
      num_tokens: `<image>` tokens, without the markers around them.
    """

    height: int
    width: int
    resized: tuple[int, int]
    stretched: tuple[int, int]
    rows: int
    cols: int
    num_tiles: int
    num_tokens: int

    @property
    def has_global_tile(self) -> bool:
        """Whether the last tile is the whole picture beside its parts."""
        return self.rows > 0 and self.num_tiles > self.rows * self.cols


def _resize_longest_edge(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """Resize 1: the longer side to `longest_edge`, the other by the aspect ratio and up to even."""
    aspect = width / height
    if width >= height:
        height, width = int(longest_edge / aspect), longest_edge
        height += height % 2
    else:
        height, width = longest_edge, int(longest_edge * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    if max(height, width) > MAX_IMAGE_SIZE:
        aspect = width / height
        if width >= height:
            height, width = int(MAX_IMAGE_SIZE / aspect), MAX_IMAGE_SIZE
        else:
            height, width = MAX_IMAGE_SIZE, int(MAX_IMAGE_SIZE * aspect)
    return max(height, 1), max(width, 1)


def _stretch_to_tiles(height: int, width: int, tile_size: int) -> tuple[int, int]:
    """Resize 2: both sides up to multiples of the tile; the aspect ratio gives way."""

    def up(pixels: int) -> int:
        return math.ceil(pixels / tile_size) * tile_size

    aspect = width / height
    if width >= height:
        width = up(width)
        return up(int(width / aspect)), width
    height = up(height)
    return height, up(int(height * aspect))


def _plan(height: int, width: int, tiling: TilingConfig, longest_edge: int) -> TilePlan:
    resized = (height, width)
    if tiling.do_resize and (tiling.upscale or max(height, width) > longest_edge):
        resized = _resize_longest_edge(height, width, longest_edge)
    tile = tiling.tile_size
    stretched = _stretch_to_tiles(*resized, tile) if tiling.do_image_splitting else (tile, tile)
    rows, cols, num_tiles = 0, 0, 1
    if stretched != (tile, tile):
        rows, cols = stretched[0] // tile, stretched[1] // tile
        num_tiles = rows * cols + tiling.global_tile
    return TilePlan(height, width, resized, stretched, rows, cols, num_tiles, num_tiles * tiling.tokens_per_tile)


def plan_tiles(height: int, width: int, tiling: TilingConfig = TilingConfig()) -> TilePlan:
    """The tiles of an image of `height` x `width` pixels.

    Args:
      height, width: positive integers.
      tiling: the model's `config.tiling`.

    Raises:
      ValueError: a side is not a positive integer.
    """
    height = require_positive("An image's height", height, "pixels")
    width = require_positive("An image's width", width, "pixels")
    longest_edge = tiling.longest_edge
    plan = _plan(height, width, tiling, longest_edge)
    while tiling.max_tiles is not None and plan.num_tiles > tiling.max_tiles:
        longest_edge -= tiling.tile_size
        plan = _plan(height, width, tiling, max(longest_edge, 1))
    return plan


def resize_sizes(plan: TilePlan, tiling: TilingConfig) -> list[tuple[tuple[int, int], tuple[int, int]] | None]:
    """(in, out) sizes of the three resizes; None for one that the configuration does without."""
    tile = (tiling.tile_size, tiling.tile_size)
    split = tiling.do_image_splitting
    return [
        ((plan.height, plan.width), plan.resized) if tiling.do_resize else None,
        (plan.resized, plan.stretched) if split else None,
        (plan.stretched if split else plan.resized, tile) if tiling.global_tile or not split else None,
    ]
