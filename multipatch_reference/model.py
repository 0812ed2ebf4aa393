"""Build transformers' own model and image processor from our configs, and run the model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from multipatch_jax.checkpoint import config_to_hf
from multipatch_jax.config import ModelConfig
from multipatch_jax.resamplers import FILTERS


def hf_config(config: ModelConfig) -> Any:
    """Convert our config to the reference's."""
    top, _ = config_to_hf(config)
    return AutoConfig.for_model(**top)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Overwrite every parameter in place with random values, biases and norm gains too.

    About one channel in 128 of each norm's gain is made 6 times as large, as trained towers have a few such channels.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            shape = tuple(tensor.shape)
            if name.endswith("bias"):
                value = rng.normal(0, 0.1, shape)
            elif len(shape) == 1:  # a norm's gain
                value = rng.normal(1, 0.2, shape)
                value[rng.integers(shape[0], size=max(shape[0] // 128, 1))] *= 6
            elif "embed" in name and len(shape) == 2:
                value = rng.normal(0, 0.3, shape)
            else:
                value = rng.normal(0, 1.3 * np.prod(shape[1:]) ** -0.5, shape)
            tensor.copy_(torch.from_numpy(value))


def reference_model(config: ModelConfig, seed: int = 0) -> Any:
    """Return the reference model with `config`'s shapes, in float32, every parameter set by `randomize`."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(hf_config(config))
    model.to_empty(device="cpu")
    for module in model.modules():  # rotary tables are buffers: to_empty leaves them undefined, randomize skips them
        if hasattr(module, "original_inv_freq"):
            module.inv_freq, _ = module.compute_default_rope_parameters(module.config, device="cpu")
            module.original_inv_freq = module.inv_freq
    randomize(model, seed)
    return model.eval()


def image_processor(config: ModelConfig) -> Idefics3ImageProcessorPil:
    """Return the reference's image processor for `config`, with the PIL backend."""
    tiling = config.tiling
    return Idefics3ImageProcessorPil(
        size={"longest_edge": tiling.longest_edge},
        max_image_size={"longest_edge": tiling.tile_size},
        do_resize=tiling.do_resize,
        do_image_splitting=tiling.do_image_splitting,
        resample=FILTERS[tiling.filter].pillow_code,
    )


def save_checkpoint(model: Any, config: ModelConfig, folder: Path) -> Path:
    """Write the model and its image processor to `folder`, as transformers does, and return `folder`."""
    model.save_pretrained(folder)
    image_processor(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def image_features(
    model: Any, pixel_values: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (tower features, visual tokens) of normalised tiles.

    Args:
      model: from `reference_model`; it computes in its own dtype.
      pixel_values: (N, M, M, 3), about -1 to 1.
      mask: (N, M, M), True for real pixels; None when all are real.

    Returns:
      float64 arrays: features (N, P, C) after the tower's last norm, and tokens (N, T, D).
    """
    pixels = torch.from_numpy(np.moveaxis(pixel_values, -1, -3).copy())[None].to(model.dtype)
    output = model.model.get_image_features(pixels, None if mask is None else torch.from_numpy(mask)[None])
    tokens = output.pooler_output[0].double().numpy()
    return output.last_hidden_state.double().numpy(), tokens.reshape(len(pixel_values), -1, tokens.shape[-1])


@torch.no_grad()
def reference_hidden_states(model: Any, pixel_values: np.ndarray) -> list[np.ndarray]:
    """Return the inner features of the reference's tower: the embeddings, then the result of each layer.

    They are transformers' own `hidden_states`.

    Args:
      model: from `reference_model` or transformers.
      pixel_values: normalised tiles, (N, M, M, 3).

    Returns:
      `num_hidden_layers + 1` float64 arrays (N, P, C), computed in the dtype of the model.
    """
    pixels = torch.from_numpy(np.moveaxis(pixel_values, -1, -3).copy()).to(model.dtype)
    output = model.model.vision_model(pixels, output_hidden_states=True)
    return [states.double().numpy() for states in output.hidden_states]
