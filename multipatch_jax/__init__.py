"""Any image to the visual tokens of the SmolVLM / Idefics3 family, in JAX, equal to the reference."""

__version__ = "0.1.0"

from multipatch_jax.cache import TileCache
from multipatch_jax.checkpoint import export_hf, from_pretrained, save_pretrained
from multipatch_jax.compiles import RecompileError, count_compilations, forbid_compilations
from multipatch_jax.config import ConnectorConfig, ModelConfig, TextConfig, TilingConfig, VisionConfig
from multipatch_jax.connector import Idefics3Connector, pixel_unshuffle
from multipatch_jax.encode import encode_image, encode_tiles, vision_features
from multipatch_jax.hf_folder import CheckpointError
from multipatch_jax.image import ImageError, load_image
from multipatch_jax.packing import embed_tokens, expand_prompt, expanded_length, labels_for, pack
from multipatch_jax.preprocess import tile_image, tile_image_host
from multipatch_jax.presets import IDEFICS3_8B, PRESETS, SMOLVLM_2_2B, SMOLVLM_256M, SMOLVLM_500M, UNVERIFIED
from multipatch_jax.processor import MultiPatchVisionProcessor, init_params
from multipatch_jax.retrieval import retrieval_embeddings
from multipatch_jax.stream import encode_images, iter_encode_images, warmup
from multipatch_jax.text import Processor, TextInputs, prepare_inputs
from multipatch_jax.tile_queue import StreamStats
from multipatch_jax.tiling import TilePlan, plan_tiles
from multipatch_jax.video import VideoPlan, encode_frames, expand_video_prompt, sample_frames

__all__ = [
    "IDEFICS3_8B",
    "PRESETS",
    "SMOLVLM_2_2B",
    "SMOLVLM_256M",
    "SMOLVLM_500M",
    "UNVERIFIED",
    "CheckpointError",
    "ConnectorConfig",
    "Idefics3Connector",
    "ImageError",
    "ModelConfig",
    "MultiPatchVisionProcessor",
    "Processor",
    "RecompileError",
    "StreamStats",
    "TextConfig",
    "TextInputs",
    "TileCache",
    "TilePlan",
    "TilingConfig",
    "VideoPlan",
    "VisionConfig",
    "count_compilations",
    "embed_tokens",
    "encode_frames",
    "encode_image",
    "encode_images",
    "encode_tiles",
    "expand_prompt",
    "expand_video_prompt",
    "expanded_length",
    "export_hf",
    "forbid_compilations",
    "from_pretrained",
    "init_params",
    "iter_encode_images",
    "labels_for",
    "load_image",
    "pack",
    "pixel_unshuffle",
    "plan_tiles",
    "prepare_inputs",
    "retrieval_embeddings",
    "sample_frames",
    "save_pretrained",
    "tile_image",
    "tile_image_host",
    "vision_features",
    "warmup",
]
