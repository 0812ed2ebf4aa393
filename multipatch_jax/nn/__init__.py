"""The networks, as Flax modules of one tile or one text.

The vision tower turns a tile's pixels into features, the connector turns features into visual tokens, and the decoder
turns input embeddings into logits. A retriever has a head of its own. Attention kernels and encoders are in tables.

`docs/architecture.md` explains the shape letters of the annotations.
"""

from multipatch_jax.nn.attention import KERNELS, rows_suit_cublas
from multipatch_jax.nn.compute import Compute, resolve_compute
from multipatch_jax.nn.connector import Idefics3Connector, pixel_unshuffle
from multipatch_jax.nn.connectors import CONNECTORS, ConnectorKind, connector_of
from multipatch_jax.nn.encoders import ENCODERS
from multipatch_jax.nn.kv_cache import KVCache, init_cache, split_layers
from multipatch_jax.nn.llama import LlamaModel, logits, resolve_decoder_compute
from multipatch_jax.nn.model import MultiPatchVisionProcessor
from multipatch_jax.nn.native_decoder import can_step, decoder_prefill, decoder_step, init_packed_cache, pack_decoder
from multipatch_jax.nn.platforms import Target, this_machine
from multipatch_jax.nn.retrieval import retrieval_embeddings
from multipatch_jax.nn.siglip import VisionTransformer

__all__ = [
    "CONNECTORS",
    "ENCODERS",
    "KERNELS",
    "Compute",
    "ConnectorKind",
    "Idefics3Connector",
    "KVCache",
    "LlamaModel",
    "MultiPatchVisionProcessor",
    "Target",
    "VisionTransformer",
    "can_step",
    "connector_of",
    "decoder_prefill",
    "decoder_step",
    "init_cache",
    "init_packed_cache",
    "logits",
    "pack_decoder",
    "pixel_unshuffle",
    "resolve_compute",
    "resolve_decoder_compute",
    "retrieval_embeddings",
    "rows_suit_cublas",
    "split_layers",
    "this_machine",
]
