"""Build and run the reference, transformers' own model and image processor, and compare ours with it.

Tests, notebooks, benchmarks and `convert/verify.py` use this package. All of it but `distance` needs torch and
transformers (the `test` extra), so nothing in `multipatch_jax` imports it, and its modules are imported at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from multipatch_reference.distances import distance

if TYPE_CHECKING:
    from multipatch_reference.compare import LIMIT, random_checkpoint, stages
    from multipatch_reference.model import (
        hf_config,
        image_features,
        image_processor,
        randomize,
        reference_hidden_states,
        reference_model,
        save_checkpoint,
    )

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


def __getattr__(name: str) -> Any:
    """Import the module that has a public name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'multipatch_reference' has no attribute {name!r}")
    module = "compare" if name in ("LIMIT", "random_checkpoint", "stages") else "model"
    return getattr(importlib.import_module(f"multipatch_reference.{module}"), name)
