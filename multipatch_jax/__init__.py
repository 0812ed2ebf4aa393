"""Any image to the visual tokens of the SmolVLM / Idefics3 family, in JAX, equal to the reference.

What most users call is here. The rest is in the rooms: `image`, `nn`, `params`, `checkpoint`, `encode`, `text`, `train`
and `plot`.
"""

__version__ = "0.1.0"

from multipatch_jax import checkpoint, encode, image, nn, params, plot, presets, text, train
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
from multipatch_jax.nn import Idefics3Connector, MultiPatchVisionProcessor, init_params
from multipatch_jax.presets import PRESETS
from multipatch_jax.text import Processor, prepare_inputs

__all__ = [
    "PRESETS",
    "CheckpointError",
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
