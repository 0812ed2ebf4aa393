"""The operations of the tower and the connector: multiplications and additions of their matrix products."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing this file must not import JAX into processes that are measured
    from multipatch_jax.config import ModelConfig


def layer_flops(config: "ModelConfig") -> int:
    """Operations of one layer of the tower, for one tile."""
    vision = config.vision
    patches, width = vision.patches_per_side**2, vision.hidden_size
    return patches * width * (8 * width + 4 * vision.intermediate_size + 4 * patches)


def tile_flops(config: "ModelConfig") -> float:
    """Operations of tower and connector, for one tile, rounded to four digits: 214.7e9 for SmolVLM-256M."""
    vision = config.vision
    patches, width = vision.patches_per_side**2, vision.hidden_size
    embedding = 2 * patches * 3 * vision.patch_size**2 * width
    projection = 2 * patches * width * config.connector.text_hidden_size
    return float(f"{vision.num_hidden_layers * layer_flops(config) + embedding + projection:.4g}")
