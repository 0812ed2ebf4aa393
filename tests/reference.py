"""The reference: transformers' own model and image processor, with every tensor randomised."""

from pathlib import Path

import numpy as np
import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from multipatch_jax.config import ModelConfig

torch.set_num_threads(2)


def hf_config(config: ModelConfig) -> Idefics3Config:
    """The reference's config of ours; with a one-layer language model, which nobody here runs."""
    vision, text = config.vision, config.text
    return Idefics3Config(
        image_token_id=config.image_token_id,
        scale_factor=config.connector.scale_factor,
        vision_config={
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "vocab_size": text.vocab_size,
            "pad_token_id": text.pad_token_id,
            "rope_theta": text.rope_theta,
        },
    )


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Every tensor drawn anew, biases and norm gains too, with the few large channels that trained towers have."""
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


def reference_model(config: ModelConfig, seed: int = 0) -> Idefics3ForConditionalGeneration:
    with torch.device("meta"):
        model = Idefics3ForConditionalGeneration(hf_config(config))
    model.to_empty(device="cpu")
    for module in model.modules():  # rotary tables are not parameters
        if hasattr(module, "original_inv_freq"):
            module.inv_freq, _ = module.compute_default_rope_parameters(module.config, device="cpu")
            module.original_inv_freq = module.inv_freq
    randomize(model, seed)
    return model.eval()


def image_processor(config: ModelConfig) -> Idefics3ImageProcessorPil:
    tiling = config.tiling
    return Idefics3ImageProcessorPil(
        size={"longest_edge": tiling.longest_edge},
        max_image_size={"longest_edge": tiling.tile_size},
        do_resize=tiling.do_resize,
        do_image_splitting=tiling.do_image_splitting,
        resample={"lanczos": 1, "bilinear": 2, "bicubic": 3}[tiling.filter],
    )


def save_checkpoint(model: Idefics3ForConditionalGeneration, config: ModelConfig, folder: Path) -> Path:
    """The folder that transformers writes of this model and its image processor."""
    model.save_pretrained(folder)
    image_processor(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def image_features(model, pixel_values: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(tower features, visual tokens) of normalised (N, M, M, 3) tiles, computed in the model's dtype."""
    pixels = torch.from_numpy(np.moveaxis(pixel_values, -1, -3).copy())[None].to(model.dtype)
    mask = None if mask is None else torch.from_numpy(mask)[None]
    output = model.model.get_image_features(pixels, mask)
    tokens = torch.stack(output.pooler_output) if len(output.pooler_output) > 1 else output.pooler_output[0]
    return output.last_hidden_state.double().numpy(), tokens.double().numpy().reshape(
        len(pixel_values), -1, tokens.shape[-1]
    )
