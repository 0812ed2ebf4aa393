"""Resizes by Pillow and by torch, and Hypothesis strategies for filters and sides."""

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from multipatch_jax.image.host import resize_numpy
from multipatch_jax.image.steps import ResizePlan

FILTERS = ("lanczos", "bicubic", "bilinear")
filters = st.sampled_from(FILTERS)
sides = st.one_of(st.integers(1, 12), st.integers(1, 260))


def pillow(image: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling[name.upper()]))


def torch_antialiased(image: np.ndarray, size: tuple[int, int], name: str, contiguous: bool = False) -> np.ndarray:
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]  # channels last in memory, as torchvision makes it
    if contiguous and min(*image.shape[:2], *size) > 1:  # torch 2.13 fails on a side of one pixel
        x = x.contiguous()
    return torch.nn.functional.interpolate(x, size=size, mode=name, antialias=True)[0].permute(1, 2, 0).numpy()


def pillow_12(image: np.ndarray, size: tuple[int, int], name: str = "lanczos") -> np.ndarray:
    """Pillow up to 12: always the horizontal pass first."""
    return pillow(pillow(image, (image.shape[0], size[1]), name), size, name)


def torch_lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return torch_antialiased(image, size, "lanczos")


def resize_host(image: np.ndarray, size: tuple[int, int], name: str, resampler: str) -> np.ndarray:
    """Our resize in NumPy, from the image's own size."""
    return resize_numpy(image, ResizePlan((image.shape[0], image.shape[1]), size, name, resampler))
