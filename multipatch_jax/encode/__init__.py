"""Encode images and tiles as visual tokens: one image, a stream of many, or a program exported to a file."""

from multipatch_jax.encode.cache import TileCache
from multipatch_jax.encode.compiles import RecompileError, compile_all, count_compilations, forbid_compilations
from multipatch_jax.encode.execution import Execution, mesh_of, prepare_execution, tiles_in_flight
from multipatch_jax.encode.export import PLATFORMS, export_encoder, load_exported
from multipatch_jax.encode.image import encode_image
from multipatch_jax.encode.jit import memory_errors, options_for
from multipatch_jax.encode.programs import lower_encode_image, lower_encode_tiles, trace_encode
from multipatch_jax.encode.stream import encode_images, iter_encode_images, warmup
from multipatch_jax.encode.tile_queue import StreamStats, lower_stream
from multipatch_jax.encode.tiles import check_tiles, encode_tiles, vision_features

__all__ = [
    "PLATFORMS",
    "Execution",
    "RecompileError",
    "StreamStats",
    "TileCache",
    "check_tiles",
    "compile_all",
    "count_compilations",
    "encode_image",
    "encode_images",
    "encode_tiles",
    "export_encoder",
    "forbid_compilations",
    "iter_encode_images",
    "load_exported",
    "lower_encode_image",
    "lower_encode_tiles",
    "lower_stream",
    "memory_errors",
    "mesh_of",
    "options_for",
    "prepare_execution",
    "tiles_in_flight",
    "trace_encode",
    "vision_features",
    "warmup",
]
