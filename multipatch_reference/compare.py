"""Compare the reference and our computation on one checkpoint, stage by stage, to find the first stage that differs."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from transformers import AutoModelForImageTextToText

import multipatch_jax as mp
from multipatch_reference.distances import distance
from multipatch_reference.model import (
    image_features,
    image_processor,
    reference_hidden_states,
    reference_model,
    save_checkpoint,
)

LIMIT = 1e-4  # of `distance`; two correct float32 programs differ by 1e-6 to 1e-5


def random_checkpoint(name: str, folder: Path) -> Path:
    """Write a checkpoint with random weights of a preset's shapes to `folder`, and return `folder`.

    The vision tower and connector are as in the preset; the language model has one layer.

    Args:
      name: a key of `mp.PRESETS`.
    """
    config = mp.PRESETS[name]
    assert config.text is not None
    text = dataclasses.replace(config.text, num_hidden_layers=1)
    config = dataclasses.replace(config, text=text, embedding_size=None)
    return save_checkpoint(reference_model(config), config, folder)


def stages(folder: Path, image: np.ndarray) -> Iterator[tuple[str, float]]:
    """Yield (stage, distance from the reference) for one image, in the order of the computation.

    Both sides compute in float32, and neither takes a result of the other: each starts from the image, and each layer
    takes its own side's output of the layer before.

    | stage | compared | tiles |
    |---|---|---|
    | geometry | rows, columns and number of tiles | |
    | pixels | normalised tiles; inf if their shapes differ | all |
    | embeddings | patch embeddings with positions | last |
    | layer 0, layer 1, ... | output of each encoder layer | last |
    | tower | `mp.vision_features` of the normalised tile | last |
    | connector | `mp.encode_tiles` of the uint8 tile | last |

    Args:
      folder: a checkpoint that both transformers and `mp.from_pretrained` load.
      image: uint8 (H, W, 3).
    """
    config, params = mp.from_pretrained(folder, dtype="float32")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    plan = mp.plan_tiles(image.shape[0], image.shape[1], config.tiling)
    options: Any = {"return_row_col_info": True, "input_data_format": "channels_last", "return_tensors": "np"}
    theirs = image_processor(config)(image, **options)
    pixels = np.moveaxis(theirs["pixel_values"][0], 1, -1)
    grid = (theirs["rows"][0][0], theirs["cols"][0][0], len(pixels))
    yield "geometry", distance((plan.rows, plan.cols, plan.num_tiles), grid)
    tiles = mp.tile_image_host(image, config.tiling)
    normalised = mp.image.normalize(jax.numpy.asarray(tiles))
    yield "pixels", distance(normalised, pixels) if normalised.shape == pixels.shape else float("inf")

    # From here on the last tile is enough: the global one, if the image is split.
    hidden_states = reference_hidden_states(model, pixels[-1:])
    features, tokens = image_features(model, pixels[-1:])
    layers = range(config.vision.num_hidden_layers + 1)
    _, inner = mp.vision_features(params, normalised[-1:], config=config, layers=layers)
    for number, name in enumerate(["embeddings", *(f"layer {index}" for index in layers[:-1])]):
        yield name, distance(inner[number], hidden_states[number])
    yield "tower", distance(mp.vision_features(params, normalised[-1:], config=config), features)
    yield "connector", distance(mp.encode_tiles(params, tiles[-1:], config=config), tokens)
