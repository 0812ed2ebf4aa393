"""Build and run the reference, transformers' own model and image processor, and compare ours with it.

Tests, notebooks, benchmarks and `convert/verify.py` use this package. It needs torch and transformers (the `test`
extra), so nothing in `multipatch_jax` imports it.
"""

from multipatch_reference.model import (
    hf_config,
    image_features,
    image_processor,
    randomize,
    reference_hidden_states,
    reference_model,
    save_checkpoint,
)
from multipatch_reference.stages import LIMIT, distance, random_checkpoint, stages

__all__ = [
    "LIMIT",
    "distance",
    "hf_config",
    "image_features",
    "image_processor",
    "random_checkpoint",
    "randomize",
    "reference_hidden_states",
    "reference_model",
    "save_checkpoint",
    "stages",
]
