"""From an image to its tiles: load it as uint8 RGB, plan its tiles, resize it and cut it, on the device or the host."""

from multipatch_jax.image.host import tile_image_host
from multipatch_jax.image.load import count_pixels, is_one_image, load_image
from multipatch_jax.image.open import ImageError
from multipatch_jax.image.pieces import on_device, send_pieces
from multipatch_jax.image.plan import MAX_IMAGE_SIZE, TilePlan, plan_tiles
from multipatch_jax.image.prepare import PreparedImage, blank_images, bucket_side, prepare_image
from multipatch_jax.image.resize import default_resize_form
from multipatch_jax.image.steps import MAX_GRID, PackedSteps, TilingSteps, padded_steps, tiling_steps
from multipatch_jax.image.tile import normalize, tile_image, tile_padded

__all__ = [
    "MAX_GRID",
    "MAX_IMAGE_SIZE",
    "ImageError",
    "PackedSteps",
    "PreparedImage",
    "TilePlan",
    "TilingSteps",
    "blank_images",
    "bucket_side",
    "count_pixels",
    "default_resize_form",
    "is_one_image",
    "load_image",
    "normalize",
    "on_device",
    "padded_steps",
    "plan_tiles",
    "prepare_image",
    "send_pieces",
    "tile_image",
    "tile_image_host",
    "tile_padded",
    "tiling_steps",
]
