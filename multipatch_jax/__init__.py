"""Turn images of any size into the visual tokens of SmolVLM / Idefics3 models, in JAX, equal to Hugging Face's.

This module exports what most users call. Everything else is in a sub-package:

* `image`: from an image to its tiles
* `nn`: from tiles to visual tokens, as Flax modules
* `params`: names, shapes, subsets, LoRA factors and sharding of the params
* `checkpoint`: load and save models
* `encode`: visual tokens of one image, of a stream of images, of tiles; export to other machines
* `text`: prompts, input embeddings and video frames
* `generate`: answers of the language model, and its features and logits
* `train`: train steps, losses and training checkpoints
* `corpus`: tokens or answers for every image of a corpus, on one machine or many
* `plot`: pictures of tiles and tokens

`presets` has the configs of the published models.

Each of these is imported at its first use: `train` imports optax, and the command line handles Ctrl-C before it imports
JAX.
"""

__version__ = "0.2.0"

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multipatch_jax import checkpoint, corpus, encode, generate, image, nn, params, plot, presets, text, train
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
    from multipatch_jax.generate import Generator, text_features, text_logits
    from multipatch_jax.image import ImageError, load_image, plan_tiles, tile_image, tile_image_host
    from multipatch_jax.nn import Compute, Idefics3Connector, MultiPatchVisionProcessor
    from multipatch_jax.params import init_params
    from multipatch_jax.presets import PRESETS
    from multipatch_jax.text import Processor, prepare_inputs

__all__ = [
    "PRESETS",
    "CheckpointError",
    "Compute",
    "ConnectorConfig",
    "Generator",
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
    "corpus",
    "encode",
    "encode_image",
    "encode_images",
    "encode_tiles",
    "export_encoder",
    "export_hf",
    "from_pretrained",
    "generate",
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
    "text_features",
    "text_logits",
    "tile_image",
    "tile_image_host",
    "train",
    "vision_features",
    "warmup",
]


_HOMES = {
    "checkpoint": ("CheckpointError", "export_hf", "from_pretrained", "save_pretrained"),
    "config": ("ConnectorConfig", "ModelConfig", "TextConfig", "TilingConfig", "VisionConfig"),
    "encode": (
        "TileCache",
        "encode_image",
        "encode_images",
        "encode_tiles",
        "export_encoder",
        "iter_encode_images",
        "load_exported",
        "vision_features",
        "warmup",
    ),
    "generate": ("Generator", "text_features", "text_logits"),
    "image": ("ImageError", "load_image", "plan_tiles", "tile_image", "tile_image_host"),
    "nn": ("Compute", "Idefics3Connector", "MultiPatchVisionProcessor"),
    "params": ("init_params",),
    "presets": ("PRESETS",),
    "text": ("Processor", "prepare_inputs"),
}  # room -> the names that this module exports from it


def __getattr__(name: str) -> Any:
    """Import a room, or what this module exports from one, at its first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'multipatch_jax' has no attribute {name!r}")
    room = next((room for room, names in _HOMES.items() if name in names), None)
    module = importlib.import_module(f"multipatch_jax.{room or name}")
    globals()[name] = getattr(module, name) if room else module
    return globals()[name]


def __dir__() -> list[str]:
    """The public names, those not yet imported too."""
    return sorted({*globals(), *__all__})
