"""Plan the tiles of an image from its height and width alone, without its pixels.

The arithmetic is that of the reference (`Idefics3ImageProcessor`, transformers 5.23), with the same float64 divisions
and truncations to integers. Any other rounding would give a wrong number of `<image>` tokens for some sizes.
"""

import dataclasses
import math

from multipatch_jax.arguments import require_positive, require_type
from multipatch_jax.config import TilingConfig

MAX_IMAGE_SIZE = 4096
"""Resize 1 makes no side longer than this, in pixels, as in the reference."""


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """The sizes that one image goes through and the tiles that it becomes. Sizes are (height, width) in pixels.

    Attributes:
      height: height of the image.
      width: width of the image.
      resized: size after resize 1, which keeps the aspect ratio (up to rounding). The size of the image if resize 1 is
        left out.
      stretched: size after resize 2, in which both sides are multiples of the tile size; tiles are cut from this. The
        size of one tile if the config does not split images.
      rows: rows of the grid of tiles; 0 for an image that becomes one tile, as in the reference.
      cols: columns of the grid; 0 for an image that becomes one tile.
      num_tiles: number of tiles, global tile included.
      num_tokens: number of visual tokens, which is the number of `<image>` tokens in the prompt. The markers around
        them are not counted.
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
        """Whether the image is split and its last tile is the global tile, the whole picture."""
        return self.rows > 0 and self.num_tiles > self.rows * self.cols


def _resize_longest_edge(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """Return the (height, width) after resize 1: the longer side becomes `longest_edge`, the aspect ratio stays.

    The other side is truncated, then raised to an even number. If the longer side is then above MAX_IMAGE_SIZE, it is
    lowered to MAX_IMAGE_SIZE and the other side follows, truncated and not made even. No side is less than 1.
    """
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
    """Return the (height, width) after resize 2: the longer side is rounded up to a multiple of the tile size.

    The other side follows by the aspect ratio and is rounded up too, so the aspect ratio is not kept exactly.
    """

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
    """Plan the tiles of an image of `height` x `width` pixels.

    Args:
      height, width: pixels, at least 1.
      tiling: the model's `config.tiling`.

    Raises:
      ValueError: a side is not a positive integer, or `tiling` is no `TilingConfig`.
    """
    require_type("tiling", tiling, TilingConfig)
    height = require_positive("An image's height", height, "pixels")
    width = require_positive("An image's width", width, "pixels")
    longest_edge = tiling.longest_edge
    plan = _plan(height, width, tiling, longest_edge)
    while tiling.max_tiles is not None and plan.num_tiles > tiling.max_tiles:
        longest_edge -= tiling.tile_size
        plan = _plan(height, width, tiling, max(longest_edge, 1))
    return plan
