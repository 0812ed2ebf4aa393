"""A photograph of any size: the cup of coffee that comes with scikit-image, enlarged."""

from PIL import Image
from skimage import data


def photograph(height: int, width: int) -> Image.Image:
    """The photograph of this size."""
    return Image.fromarray(data.coffee()).resize((width, height), Image.Resampling.BICUBIC)
