"""Any image to the visual tokens of the SmolVLM / Idefics3 family, in JAX, equal to the reference."""

__version__ = "0.1.0"

from multipatch_jax.cache import TileCache
from multipatch_jax.checkpoint import export_hf, from_pretrained, save_pretrained
from multipatch_jax.compiles import RecompileError, count_compilations, forbid_compilations
from multipatch_jax.config import ConnectorConfig, ModelConfig, TextConfig, TilingConfig, VisionConfig
from multipatch_jax.connector import Idefics3Connector, pixel_unshuffle
from multipatch_jax.encode import encode_image, encode_tiles, vision_features
from multipatch_jax.export import export_encoder, load_exported
from multipatch_jax.fit import batch_indices, fit
from multipatch_jax.hf_folder import CheckpointError
from multipatch_jax.image import ImageError, load_image
from multipatch_jax.lora import add_lora, merge_lora
from multipatch_jax.losses import distillation_loss, pool_tokens, sigmoid_contrastive_loss
from multipatch_jax.packing import embed_tokens, expand_prompt, expanded_length, labels_for, pack
from multipatch_jax.preprocess import tile_image, tile_image_host
from multipatch_jax.presets import IDEFICS3_8B, PRESETS, SMOLVLM_2_2B, SMOLVLM_256M, SMOLVLM_500M, UNVERIFIED
from multipatch_jax.processor import MultiPatchVisionProcessor, init_params
from multipatch_jax.retrieval import retrieval_embeddings
from multipatch_jax.sharding import bytes_per_device, local_rows, make_mesh, shard, shard_batch, shardings
from multipatch_jax.stream import encode_images, iter_encode_images, warmup
from multipatch_jax.text import Processor, TextInputs, prepare_inputs
from multipatch_jax.tile_queue import StreamStats
from multipatch_jax.tiling import TilePlan, plan_tiles
from multipatch_jax.train_checkpoint import TrainCheckpoints
from multipatch_jax.trainable import kernel_mask, merge_params, split_params
from multipatch_jax.training import TrainState, init_train_state, make_train_step
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
    "TrainCheckpoints",
    "TrainState",
    "VideoPlan",
    "VisionConfig",
    "add_lora",
    "batch_indices",
    "bytes_per_device",
    "count_compilations",
    "distillation_loss",
    "embed_tokens",
    "encode_frames",
    "encode_image",
    "encode_images",
    "encode_tiles",
    "expand_prompt",
    "expand_video_prompt",
    "expanded_length",
    "export_encoder",
    "export_hf",
    "fit",
    "forbid_compilations",
    "from_pretrained",
    "init_params",
    "init_train_state",
    "iter_encode_images",
    "kernel_mask",
    "labels_for",
    "load_exported",
    "load_image",
    "local_rows",
    "make_mesh",
    "make_train_step",
    "merge_lora",
    "merge_params",
    "pack",
    "pixel_unshuffle",
    "plan_tiles",
    "pool_tokens",
    "prepare_inputs",
    "retrieval_embeddings",
    "sample_frames",
    "save_pretrained",
    "shard",
    "shard_batch",
    "shardings",
    "sigmoid_contrastive_loss",
    "split_params",
    "tile_image",
    "tile_image_host",
    "vision_features",
    "warmup",
]
