"""Writes a checkpoint of SmolVLM-256M's shapes with its whole language model, every tensor random, and a tokenizer.

    python -m benchmarks.shared.whole_checkpoint FOLDER

The folder is in transformers' layout. The weights are the same every time. The tokenizer has a token for each byte.
"""

import sys
from pathlib import Path

from benchmarks.shared.processes import run_python


def make_whole_checkpoint(folder: Path) -> None:
    """Writes the checkpoint from a new process, so that this one does not import torch."""
    run_python("-m", "benchmarks.shared.whole_checkpoint", str(folder))


def write_whole_checkpoint(folder: Path) -> None:
    """Writes the checkpoint from this process."""
    import multipatch_jax as mp
    import multipatch_reference as reference
    from tests.helpers.tokenizer import save_tokenizer

    config = mp.presets.SMOLVLM_256M
    reference.save_checkpoint(reference.reference_model(config), config, folder)
    save_tokenizer(folder)


if __name__ == "__main__":
    write_whole_checkpoint(Path(sys.argv[1]))
