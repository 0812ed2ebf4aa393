"""Models on disk: Hugging Face's folders and hub, and folders of our own; read and written strictly."""

from multipatch_jax.checkpoint.hf_config import config_from_hf, config_to_hf, read_hf_config
from multipatch_jax.checkpoint.hf_folder import CheckpointError
from multipatch_jax.checkpoint.hub import fetch, fetch_if_there
from multipatch_jax.checkpoint.pretrained import (
    export_hf,
    find_folder,
    from_pretrained,
    read_config,
    save_pretrained,
    saved_parts,
)

__all__ = [
    "CheckpointError",
    "config_from_hf",
    "config_to_hf",
    "export_hf",
    "fetch",
    "fetch_if_there",
    "find_folder",
    "from_pretrained",
    "read_config",
    "read_hf_config",
    "save_pretrained",
    "saved_parts",
]
