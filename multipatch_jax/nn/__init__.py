"""The networks: pixels of one tile -> features of the vision tower -> visual tokens; and a retriever's head.

`docs/architecture.md` explains the shape letters of the annotations.
"""

from multipatch_jax.nn.attention import choose_kernel
from multipatch_jax.nn.connector import Idefics3Connector, pixel_unshuffle
from multipatch_jax.nn.model import MultiPatchVisionProcessor, init_params
from multipatch_jax.nn.retrieval import retrieval_embeddings
from multipatch_jax.nn.siglip import VisionTransformer

__all__ = [
    "Idefics3Connector",
    "MultiPatchVisionProcessor",
    "VisionTransformer",
    "choose_kernel",
    "init_params",
    "pixel_unshuffle",
    "retrieval_embeddings",
]
