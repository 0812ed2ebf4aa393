"""The reference: transformers on one side, us on the other, for tests, notebooks, benchmarks and `convert/verify.py`.

Needs torch and transformers (the `test` extra), so nothing in `multipatch_jax` imports it.
"""

from multipatch_reference.model import (
    hf_config,
    image_features,
    image_processor,
    randomize,
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
    "reference_model",
    "save_checkpoint",
    "stages",
]
