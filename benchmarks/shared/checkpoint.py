"""Writes a checkpoint with the shapes of SmolVLM-256M, in transformers' layout, every tensor random.

    python -m benchmarks.shared.checkpoint FOLDER LAYERS DTYPE

The tower has LAYERS layers and the language model has one. The weights are the same every time. They are rounded to
DTYPE, and the file holds them in float32.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from benchmarks.shared.processes import run_python

LAYERS = 12  # of SmolVLM-256M's tower


def make_checkpoint(folder: Path, layers: int = LAYERS, dtype: str = "float32") -> None:
    """Writes the checkpoint from a new process, so that this one does not import torch."""
    run_python("-m", "benchmarks.shared.checkpoint", str(folder), str(layers), dtype)


def write_checkpoint(folder: Path, layers: int = LAYERS, dtype: str = "float32") -> Any:
    """Writes the checkpoint from this process, and returns the reference's model."""
    import torch

    import multipatch_jax as mp
    import multipatch_reference as reference

    preset = mp.presets.SMOLVLM_256M
    assert preset.text is not None
    config = dataclasses.replace(
        preset,
        vision=dataclasses.replace(preset.vision, num_hidden_layers=layers),
        text=dataclasses.replace(preset.text, num_hidden_layers=1),
    )
    model = reference.reference_model(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor.to(getattr(torch, dtype)))
    reference.save_checkpoint(model, config, folder)
    return model


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
