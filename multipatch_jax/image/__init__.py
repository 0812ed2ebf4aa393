"""From an image to its tiles: load it as uint8 RGB, plan its tiles, resize it and cut it, on the device or the host."""

from multipatch_jax.image.bucket import (
    BUCKETS,
    MAX_GRID,
    TilingSteps,
    bucket_of,
    fits_bucket,
    pad_to_bucket,
    tiling_steps,
)
from multipatch_jax.image.host import tile_image_host
from multipatch_jax.image.load import ImageError, load_image
from multipatch_jax.image.plan import MAX_IMAGE_SIZE, TilePlan, plan_tiles
from multipatch_jax.image.resize import default_resize_implementation
from multipatch_jax.image.tile import normalize, tile_image, tile_padded

__all__ = [
    "BUCKETS",
    "MAX_GRID",
    "MAX_IMAGE_SIZE",
    "ImageError",
    "TilePlan",
    "TilingSteps",
    "bucket_of",
    "default_resize_implementation",
    "fits_bucket",
    "load_image",
    "normalize",
    "pad_to_bucket",
    "plan_tiles",
    "tile_image",
    "tile_image_host",
    "tile_padded",
    "tiling_steps",
]
