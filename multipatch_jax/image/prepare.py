"""Prepare an image for its program: put into a size bucket, or, if it fits none, cut into tiles on the host.

XLA compiles a program for each shape of its inputs, so every new image size would have to wait for the compiler.
Instead, an image goes into its bucket, the smallest of three squares that holds it. Sizes, grid and resize weights,
which differ between the images of a bucket, are passed as an array of static shape (`PackedSteps`). So a few compiled
programs, one for each bucket and number of tiles, serve images of every size.

How an image lies in its bucket depends on the platform, and with it on the form of the resize:

| form | on the host | sent | on the device |
|---|---|---|---|
| "gather", CPU | the image is copied into a square of zeros | nothing | the square is read where it lies |
| "banded", TPU | the same | the whole square | the same: a TPU would move rows of bytes very slowly |
| "batched", GPU | only the last piece is copied, up to 3 MiB | the image, in whole pieces | rows move into the square |

With 12 megapixels (36 MB), the first writes 50 MB on the host; the second writes the same and sends it; the third
writes 3 MB and sends 38 MB (`python -m benchmarks.host_to_device --count`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from multipatch_jax.arguments import check_image, require_type
from multipatch_jax.config import TilingConfig
from multipatch_jax.image.host import tile_image_host
from multipatch_jax.image.pieces import cut_pieces
from multipatch_jax.image.plan import TilePlan, plan_tiles
from multipatch_jax.image.resize import default_resize_form
from multipatch_jax.image.steps import PackedSteps, TilingSteps, pack_steps, padded_steps

BUCKETS = (1024, 2048, 4096)  # sides of the squares that images are padded to, in pixels


class PreparedImage(NamedTuple):
    """An image, ready for its program: in a bucket, or as tiles.

    Attributes:
      plan: of the image.
      pixels: the image in the upper left corner of its bucket, or its pieces (`pieces.py`), which may be views of the
        caller's array. None if it fits no bucket.
      steps: how the pixels become tiles, in one array; None if it fits no bucket.
      tiles: the tiles, made on the host; None if it is in a bucket.
    """

    plan: TilePlan
    pixels: UInt8[np.ndarray, "side side 3"] | tuple[UInt8[np.ndarray, " piece"], ...] | None
    steps: PackedSteps | None
    tiles: UInt8[np.ndarray, "N M M 3"] | None


def prepare_image(
    image: UInt8[np.ndarray, "H W 3"],
    tiling: TilingConfig = TilingConfig(),
    *,
    on_device: bool = True,
    form: str | None = None,
) -> PreparedImage:
    """Prepare an image for the device to tile; on the host if it fits no bucket or `on_device` is False.

    Args:
      image: pixels, as `load_image` returns them.
      tiling: the model's `config.tiling`.
      on_device: False makes the tiles on the host, whatever the size of the image.
      form: of the resize, which decides how the image lies in its bucket. None is that of the default backend.
    """
    check_image(image, np.ndarray, "a NumPy array")
    plan = plan_tiles(image.shape[0], image.shape[1], tiling)
    side, steps = _find_bucket(plan, tiling) if on_device else (0, None)
    if steps is None:
        return PreparedImage(plan, None, None, tile_image_host(image, tiling))
    pixels = cut_pieces(image, side) if _in_pieces(form) else _pad(image, side)
    return PreparedImage(plan, pixels, pack_steps(steps), None)


def blank_images(tiling: TilingConfig, form: str | None = None) -> Iterator[PreparedImage]:
    """Yield one image for each bucket that images of this config go through, with uninitialised pixels.

    Their shapes are those of every image of the bucket, for a program to be compiled with.

    Args:
      tiling: the model's.
      form: as in `prepare_image`.
    """
    for side in BUCKETS:
        plan = plan_tiles(side, side, tiling)
        steps = padded_steps(plan, tiling, side)
        if steps is not None:
            pixels = np.empty((side, side, 3), np.uint8)
            pixels = cut_pieces(pixels, side) if _in_pieces(form) else pixels
            yield PreparedImage(plan, pixels, pack_steps(steps), None)


def bucket_side(plan: TilePlan, tiling: TilingConfig = TilingConfig()) -> int | None:
    """Return the side of the image's bucket, in pixels; None if no bucket's program can tile the image.

    The image must be at most 4096 pixels a side, its grid at most 4 x 4 tiles, and its resize weights must have no more
    taps than the program. An extreme aspect ratio can need more taps: 4096 x 111 pixels do with tiles of 64 and a
    longest edge of 256. For an image that does not fit, `tile_image_host` gives the same bytes.
    """
    require_type("plan", plan, TilePlan)
    require_type("tiling", tiling, TilingConfig)
    side, steps = _find_bucket(plan, tiling)
    return None if steps is None else side


def _find_bucket(plan: TilePlan, tiling: TilingConfig) -> tuple[int, TilingSteps | None]:
    """Return the side of the image's bucket and its steps, which are None if the image fits no bucket."""
    side = next((side for side in BUCKETS if max(plan.height, plan.width) <= side), 0)
    return side, padded_steps(plan, tiling, side) if side else None


def _in_pieces(form: str | None) -> bool:
    return (form or default_resize_form()) == "batched"


def _pad(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Copy an image into the upper left corner of a square of zeros."""
    size = side * side * 3
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64  # on a CPU, JAX copies a NumPy array unless 64 divides its address
    padded = memory[start : start + size].reshape(side, side, 3)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
