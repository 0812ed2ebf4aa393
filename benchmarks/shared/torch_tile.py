"""The reference's tower and connector as one torch module for full tiles, which compilers and exporters can take."""

from pathlib import Path
from typing import Any


def torch_module(folder: Path, attention: str = "sdpa", dtype: str = "float32") -> Any:
    """The module of a checkpoint: (N, 3, M, M) normalised pixels -> tokens.

    The reference's own forward pass makes masks that depend on its data, and torch.compile, ONNX and OpenVINO cannot
    compile those. This module leaves them out, as full tiles need none.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    settings = {"attn_implementation": attention, "dtype": getattr(torch, dtype)}
    model = AutoModelForImageTextToText.from_pretrained(folder, **settings)
    tower, connector = model.model.vision_model, model.model.connector

    class Tile(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.encoder = tower.embeddings, tower.encoder
            self.post_layernorm, self.connector = tower.post_layernorm, connector

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            x = self.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
            x = x + self.embeddings.position_embedding.weight
            for layer in self.encoder.layers:
                x = layer(x, None)
            return self.connector(self.post_layernorm(x))

    return Tile().eval()
