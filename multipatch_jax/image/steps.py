"""The three resizes of an image, each described once: sizes, weights, and what a bucket's program has room for.

| resize | from | to | left out if |
|---|---|---|---|
| 1 | the image | the longest edge, in proportion | `do_resize` is False |
| 2 | result of 1 | multiples of the tile size, which the grid is cut from | `do_image_splitting` is False |
| 3 | result of 2 (of 1 without it) | one tile: the global tile, or the only tile | there is no global tile but a grid |
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from multipatch_jax.config import TilingConfig
from multipatch_jax.image.plan import TilePlan
from multipatch_jax.image.resize import ResizeStep
from multipatch_jax.resamplers import FILTERS, AxisWeights, ResizeWeights, Size, resize_weights

MAX_GRID = 4
"""The most tiles along a side of the grid that the program of a size bucket makes."""


@dataclasses.dataclass(frozen=True)
class ResizePlan:
    """One resize of one image, in integers.

    Attributes:
      in_size, out_size: (height, width) in pixels.
      filter, resampler: of the `TilingConfig`.
      fixed_order: whether a bucket's program always goes horizontal first. Otherwise it decides by image.
      padded_sides: sides of the squares that hold input and result in a bucket's program, in pixels. None for a program
        of this image's own sizes.
    """

    in_size: Size
    out_size: Size
    filter: str
    resampler: str
    fixed_order: bool = False
    padded_sides: tuple[int, int] | None = None

    @functools.cached_property
    def weights(self) -> ResizeWeights:
        """The weights of the two passes, in this image's own shapes."""
        return resize_weights(self.in_size, self.out_size, self.filter, self.resampler)

    def fits(self) -> bool:
        """Return whether a bucket's program has room for this resize."""
        assert self.padded_sides is not None
        in_side, out_side = self.padded_sides
        taps = max(self.weights.vertical.weights.shape[1], self.weights.horizontal.weights.shape[1])
        has_room = max(self.in_size) <= in_side and max(self.out_size) <= out_side and taps <= self._padded_taps()
        return has_room and not (self.fixed_order and self.weights.vertical_first)

    def arrays(self) -> ResizeStep:
        """Return weights and sizes as NumPy arrays, padded to the static shapes of the bucket's program, if any."""
        vertical, horizontal, vertical_first, order_varies = self.weights
        if self.padded_sides is not None:
            pad = functools.partial(pad_axis_weights, out_size=self.padded_sides[1], taps=self._padded_taps())
            vertical, horizontal = pad(vertical), pad(horizontal)
        decides = self.padded_sides is None or (order_varies and not self.fixed_order)
        order = np.array(vertical_first) if decides else None
        return ResizeStep(
            vertical, horizontal, np.array(self.in_size, np.int32), np.array(self.out_size, np.int32), order
        )

    def _padded_taps(self) -> int:
        # Taps that the bucket's scale needs, plus one: rounded sizes can make an image's own scale a little larger.
        assert self.padded_sides is not None
        in_side, out_side = self.padded_sides
        return math.ceil(2 * FILTERS[self.filter].support * max(in_side / out_side, 1)) + 1


def resize_plans(
    plan: TilePlan, tiling: TilingConfig, bucket_side: int | None = None
) -> tuple[ResizePlan | None, ResizePlan | None, ResizePlan | None]:
    """Return the three resizes of an image; None for one that the config leaves out.

    Resize 3 is given even for an image that becomes one tile and so needs no global tile: the program of a bucket then
    serves both kinds.

    Args:
      bucket_side: side of the image's bucket, in pixels. None describes a program of the image's own sizes.
    """
    tile, split = tiling.tile_size, tiling.do_image_splitting
    resized_side, grid_side = _padded_sides(tiling, bucket_side or 0)
    last_size, last_side = (plan.stretched, grid_side) if split else (plan.resized, resized_side)

    def resize(in_size: Size, out_size: Size, in_side: int, out_side: int, fixed_order: bool = False) -> ResizePlan:
        sides = (in_side, out_side) if bucket_side else None
        return ResizePlan(in_size, out_size, tiling.filter, tiling.resampler, fixed_order, sides)

    source = (plan.height, plan.width)
    first = resize(source, plan.resized, bucket_side or 0, resized_side) if tiling.do_resize else None
    # Resize 2 has two passes only if both sides grow, and then none of our resamplers goes vertical first.
    second = resize(plan.resized, plan.stretched, resized_side, grid_side, fixed_order=True) if split else None
    third = resize(last_size, (tile, tile), last_side, tile) if tiling.global_tile or not split else None
    return first, second, third


def _padded_sides(tiling: TilingConfig, bucket_side: int) -> tuple[int, int]:
    """Return the sides of the squares that hold the results of resize 1 and resize 2 in a bucket's program."""
    if not tiling.do_resize:
        return bucket_side, MAX_GRID * tiling.tile_size
    side = min(-(-tiling.longest_edge // tiling.tile_size), MAX_GRID) * tiling.tile_size
    return side, side


class TilingSteps(NamedTuple):
    """What `tile_padded` needs to know of one image, as arrays: the three resizes and the grid of tiles.

    Attributes:
      to_longest_edge: resize 1; None if the config leaves it out.
      to_multiples: resize 2; None if the config leaves it out.
      to_one_tile: resize 3; None if the config leaves it out.
      cols: columns of the grid, at least 1.
      grid_tiles: tiles of the grid (rows * columns), at least 1; the global tile is not counted.
    """

    to_longest_edge: ResizeStep | None
    to_multiples: ResizeStep | None
    to_one_tile: ResizeStep | None
    cols: Int32[Array | np.ndarray, ""]
    grid_tiles: Int32[Array | np.ndarray, ""]

    @property
    def image_size(self) -> Int32[Array | np.ndarray, "2"]:
        """(height, width) of the image, in pixels."""
        return next(step.in_size for step in self[:3] if step is not None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedSteps:
    """`TilingSteps` in one array. A device is sent one array rather than 22, each of which would cost time of its own.

    Attributes:
      values: of all arrays, one after another.
      layout: the structure of the `TilingSteps`, and the shape and dtype of each array.
    """

    values: Int32[Array | np.ndarray, " n"]
    layout: tuple[Any, tuple[tuple[tuple[int, ...], np.dtype], ...]] = dataclasses.field(metadata={"static": True})

    def unpack(self) -> TilingSteps:
        """Return the steps, as JAX arrays. Traceable."""
        structure, arrays = self.layout
        ends = np.cumsum([math.prod(shape) for shape, _ in arrays])
        parts = jnp.split(self.values, ends[:-1])
        leaves = [part.reshape(shape).astype(dtype) for part, (shape, dtype) in zip(parts, arrays, strict=True)]
        return jax.tree.unflatten(structure, leaves)


def pack_steps(steps: TilingSteps) -> PackedSteps:
    """Put the arrays of steps, which are integers of at most 32 bits and bools, into one."""
    leaves, structure = jax.tree.flatten(steps)
    values = np.concatenate([leaf.reshape(-1).astype(np.int32) for leaf in leaves])
    return PackedSteps(values, (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)))


def pad_axis_weights(one: AxisWeights, out_size: int, taps: int) -> AxisWeights:
    """Pad weights with zeros to `out_size` outputs of `taps` taps each, so that their shape is static.

    The added outputs come out as 0.
    """
    extra = out_size - len(one.starts)
    return AxisWeights(
        np.pad(one.starts, (0, extra), mode="edge"),
        np.pad(one.weights, ((0, extra), (0, taps - one.weights.shape[1]))),
    )


def tiling_steps(plan: TilePlan, tiling: TilingConfig = TilingConfig()) -> TilingSteps:
    """Return the arrays that `tile_padded` needs to tile an image, in the image's own shapes.

    Args:
      plan: the image's plan, from `plan_tiles`.
      tiling: the config that the plan was made with.

    Returns:
      `TilingSteps` of NumPy arrays.
    """
    return _steps(plan, resize_plans(plan, tiling))


def padded_steps(plan: TilePlan, tiling: TilingConfig, bucket_side: int) -> TilingSteps | None:
    """Return what `tiling_steps` does, padded to the static shapes of a bucket's program; None if they do not fit.

    Args:
      bucket_side: side of the bucket, in pixels.
    """
    plans = resize_plans(plan, tiling, bucket_side)
    return _steps(plan, plans) if all(one.fits() for one in plans if one is not None) else None


def _steps(plan: TilePlan, plans: Sequence[ResizePlan | None]) -> TilingSteps:
    first, second, third = plans
    return TilingSteps(
        to_longest_edge=first and first.arrays(),
        to_multiples=second and second.arrays(),
        to_one_tile=third and third.arrays(),
        cols=np.array(max(plan.cols, 1), np.int32),
        grid_tiles=np.array(max(plan.rows * plan.cols, 1), np.int32),
    )
