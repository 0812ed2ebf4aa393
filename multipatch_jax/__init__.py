"""Turn images of any size into the visual tokens of SmolVLM / Idefics3 models, in JAX, equal to Hugging Face's.

This module exports what most users call. Everything else is in a sub-package:

* `image`: from an image to its tiles
* `nn`: from tiles to visual tokens, as Flax modules
* `params`: names, shapes, subsets, LoRA factors and sharding of the params
* `checkpoint`: load and save models
* `encode`: visual tokens of one image, of a stream of images, of tiles; export to other machines
* `text`: prompts, input embeddings and video frames
* `train`: train steps, losses and training checkpoints
* `plot`: pictures of tiles and tokens

`presets` has the configs of the published models.

`plot` and `train` are imported when they are first used, because `train` imports optax.
"""

__version__ = "0.1.0"

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from multipatch_jax import checkpoint, encode, image, nn, params, presets, text
from multipatch_jax.checkpoint import CheckpointError, export_hf, from_pretrained, save_pretrained
from multipatch_jax.config import ConnectorConfig, ModelConfig, TextConfig, TilingConfig, VisionConfig
from multipatch_jax.encode import (
    TileCache,
    encode_image,
    encode_images,
    encode_tiles,
    export_encoder,
    iter_encode_images,
    load_exported,
    vision_features,
    warmup,
)
from multipatch_jax.image import ImageError, load_image, plan_tiles, tile_image, tile_image_host
from multipatch_jax.nn import Compute, Idefics3Connector, MultiPatchVisionProcessor, init_params
from multipatch_jax.presets import PRESETS
from multipatch_jax.text import Processor, prepare_inputs

if TYPE_CHECKING:
    from multipatch_jax import plot, train

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Compute",
    "ConnectorConfig",
    "Idefics3Connector",
    "ImageError",
    "ModelConfig",
    "MultiPatchVisionProcessor",
    "Processor",
    "TextConfig",
    "TileCache",
    "TilingConfig",
    "VisionConfig",
    "checkpoint",
    "encode",
    "encode_image",
    "encode_images",
    "encode_tiles",
    "export_encoder",
    "export_hf",
    "from_pretrained",
    "image",
    "init_params",
    "iter_encode_images",
    "load_exported",
    "load_image",
    "nn",
    "params",
    "plan_tiles",
    "plot",
    "prepare_inputs",
    "presets",
    "save_pretrained",
    "text",
    "tile_image",
    "tile_image_host",
    "train",
    "vision_features",
    "warmup",
]


def __getattr__(name: str) -> ModuleType:
    """Imports `plot` or `train` at its first use (PEP 562)."""
    if name in ("plot", "train"):
        return importlib.import_module(f"multipatch_jax.{name}")
    raise AttributeError(f"module 'multipatch_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those not yet imported too."""
    return sorted({*globals(), *__all__})
