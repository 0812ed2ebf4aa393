"""The reference's tiles of an image, and photographs to cut."""

import functools
from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import multipatch_jax as mp

SMALL = mp.TilingConfig(longest_edge=256, tile_size=64, tokens_per_tile=16)


def reference_tiles(image: np.ndarray, tiling: mp.TilingConfig) -> np.ndarray:
    """uint8 (N, M, M, 3) by transformers' processor; `upscale` and `global_tile`, which it lacks, are done here."""
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": tiling.longest_edge},
        max_image_size={"longest_edge": tiling.tile_size},
        resample=Image.Resampling[tiling.filter.upper()],
        do_resize=tiling.do_resize and (tiling.upscale or max(image.shape[:2]) > tiling.longest_edge),
        do_image_splitting=tiling.do_image_splitting,
        do_rescale=False,
        do_normalize=False,
    )
    tiles = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
    assert tiles.dtype == np.uint8
    return tiles if tiling.global_tile or len(tiles) == 1 else tiles[:-1]


@functools.cache
def photographs() -> list[np.ndarray]:
    china, flower = load_sample_images().images
    return [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.retina(), china, flower]


def assert_same_bytes(got: Any, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert got.dtype == np.uint8
    differing = np.count_nonzero(np.asarray(got) != expected)
    assert differing == 0, f"{differing} of {expected.size} bytes differ"
