"""Load an image as uint8 RGB pixels: from a file, bytes, a PIL image or an array.

The conversion to RGB is the reference's `do_convert_rgb` (transformers 5.23, PIL backend). An image with transparency
is composited over opaque white. Every other mode goes through Pillow's `convert("RGB")`, which clips a 16-bit image at
255 and does not scale it.

Several threads may call `load_image` at once.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from multipatch_jax.image.open import (
    TRANSPOSE,
    ImageError,
    check_pixels,
    is_file,
    open_image,
    orientation,
    pillow_errors,
)

FLOAT_DTYPES = ("float16", "float32", "float64", "bfloat16")
STRIP_PIXELS = 2**18  # pixels converted at a time: 1 MB at Pillow's 4 bytes a pixel, which stays in cache


def load_image(source: Any, *, exif_transpose: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Load one image as 8-bit RGB pixels.

    Args:
      source: one of

        * a file: a path, the bytes of a file, or a binary file object (read from its beginning if it can seek, and left
          open). HEIC needs the library `pillow-heif`. Of an animation the first frame is loaded. The image is turned
          upright by its EXIF orientation and transparency is composited over white. (The reference, given a path, drops
          the alpha channel instead, which shows the colours that it hid.)
        * a `PIL.Image.Image` of any mode: its current frame, transparency over white.
        * a NumPy or JAX array (H, W, channels) with 1 channel (grey), 3 (RGB) or 4 (RGBA, composited over white):
          uint8, or a float type with values in [0, 1], which are multiplied by 255 and truncated. Neither the layout
          nor the range of values is ever guessed. A traced JAX array has no values, so JAX refuses it.
      exif_transpose: whether to turn a PIL image upright by its EXIF orientation. The reference does not.

    Returns:
      A C-contiguous array. A C-contiguous uint8 RGB array is returned as it is, without a copy.

    Raises:
      FileNotFoundError: the path does not exist.
      ImageError: the image cannot be opened or decoded, or is refused: a file or PIL image with more than twice
        `PIL.Image.MAX_IMAGE_PIXELS` pixels (above once there is a warning), a PostScript file, an image without pixels,
        an array of another shape, dtype or range, or a source of another type.
    """
    if isinstance(source, Image.Image):
        with pillow_errors(_name(source)):
            check_pixels(*source.size)
            return _from_pil(source, exif_transpose)
    if is_file(source):
        with open_image(source) as image:
            return _from_pil(image, upright=True)
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source))
    raise ImageError(
        f"An image must be a path, bytes, a binary file object, a PIL image or an array, got {type(source).__name__}."
    )


def is_one_image(source: Any) -> bool:
    """Return whether a source is one image by itself, where a sequence of images is expected.

    Python takes some of them for sequences too: the lines of a file object, the rows of an array (H, W, C).
    """
    return isinstance(source, Image.Image) or is_file(source) or getattr(source, "ndim", 0) in (2, 3)


def count_pixels(source: Any) -> int:
    """Return how many pixels `load_image(source)` would have to decode, from the file's header; 0 if it is no file.

    Raises:
      ImageError, FileNotFoundError: as `load_image`.
    """
    if isinstance(source, Image.Image):
        return math.prod(source.size)
    if not is_file(source):
        return 0
    with open_image(source) as image:
        return math.prod(image.size)


def _name(image: Image.Image) -> str:
    filename = getattr(image, "filename", "")
    return f"PIL image {filename!r}" if filename else "PIL image"


def _from_pil(image: Image.Image, upright: bool) -> UInt8[np.ndarray, "H W 3"]:
    if 0 in image.size:
        raise ImageError(f"An image must have at least one pixel, got {image.width} x {image.height}.")
    image.load()
    if upright and (method := TRANSPOSE.get(orientation(image))) is not None:
        image = image.transpose(method)
    has_alpha = "A" in image.getbands() or image.info.get("transparency") is not None
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if has_alpha:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _from_array(array: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        hint = ""
        if array.ndim == 2:
            hint = ": a grey image needs its channel axis, x[..., None]"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = ": if channels come first, use np.moveaxis(x, 0, -1)"
        elif array.ndim == 4:
            hint = ": pass one image at a time"
        raise ImageError(f"An image array must be (H, W, C) with C = 1, 3 or 4, got shape {array.shape}{hint}.")
    if 0 in array.shape:
        raise ImageError(f"An image must have at least one pixel, got an array of shape {array.shape}.")
    if array.dtype.name in FLOAT_DTYPES:
        array = _float_to_uint8(array)
    elif array.dtype != np.uint8:
        hint = "if its values are 0 to 255, use x.astype(np.uint8)"
        if array.dtype == np.bool_:
            hint = "if True is white, use x.astype(np.uint8) * 255"
        raise ImageError(f"An image array must be uint8, or floating point in [0, 1], got {array.dtype}: {hint}.")
    if array.shape[-1] == 4:
        return _from_pil(Image.fromarray(np.ascontiguousarray(array)), upright=False)
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array)


def _float_to_uint8(array: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1] to uint8 with the reference's roundings; RGBA is composited over white first.

    Values are multiplied by 255, rounded to float32 and truncated.
    """
    if array.dtype.name == "bfloat16":  # the reference does not know bfloat16; float32 holds every bfloat16 value
        array = array.astype(np.float32)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise ImageError(
            f"A floating-point image must lie in [0, 1], got values from {low} to {high}: "
            f"if they are 0 to 255, use x.astype(np.uint8)."
        )
    if array.shape[-1] == 4:
        alpha = array[..., 3:]
        array = alpha * array[..., :3] + (1 - alpha)
    product = np.multiply(array, 255, dtype=np.result_type(array, np.float32))
    return product.astype(np.float32, copy=False).astype(np.uint8)
