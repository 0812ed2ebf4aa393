"""Writes a checkpoint of SmolVLM-256M's shapes with its whole language model, every tensor random, and a tokenizer.

    python -m benchmarks.shared.whole_checkpoint FOLDER [LAYERS]

The folder is in transformers' layout. With LAYERS, tower and language model have so many layers. The weights are the
same every time. The tokenizer has a token for each byte.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.shared.processes import run_python

if TYPE_CHECKING:  # importing this file must not import JAX into processes that are measured
    from multipatch_jax.config import ModelConfig


def make_whole_checkpoint(folder: Path, layers: int | None = None) -> None:
    """Writes the checkpoint from a new process, so that this one does not import torch."""
    run_python("-m", "benchmarks.shared.whole_checkpoint", str(folder), *([] if layers is None else [str(layers)]))


def whole_config(layers: int | None = None) -> "ModelConfig":
    """The config of the checkpoint."""
    from multipatch_jax.presets import SMOLVLM_256M as config

    if layers is None:
        return config
    assert config.text is not None
    vision, text = (dataclasses.replace(part, num_hidden_layers=layers) for part in (config.vision, config.text))
    return dataclasses.replace(config, vision=vision, text=text)


def write_whole_checkpoint(folder: Path, layers: int | None = None) -> None:
    """Writes the checkpoint from this process."""
    import multipatch_reference as reference
    from tests.helpers.tokenizer import save_tokenizer

    config = whole_config(layers)
    reference.save_checkpoint(reference.reference_model(config), config, folder)
    save_tokenizer(folder)


if __name__ == "__main__":
    write_whole_checkpoint(Path(sys.argv[1]), *map(int, sys.argv[2:]))
