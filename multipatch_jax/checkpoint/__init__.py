"""Load and save models: Hugging Face folders and hub ids, and the folders that `save_pretrained` writes.

Loading is strict: an unknown config key, or a tensor that is missing, unexpected or of another shape, is an error, and
then nothing is loaded.
"""

from multipatch_jax.checkpoint.error import CheckpointError
from multipatch_jax.checkpoint.hf_config import config_from_hf, config_to_hf, read_hf_config
from multipatch_jax.checkpoint.hub import fetch, fetch_if_there
from multipatch_jax.checkpoint.pretrained import (
    default_dtype,
    export_hf,
    find_folder,
    from_pretrained,
    needed_files,
    read_config,
    save_pretrained,
)
from multipatch_jax.checkpoint.saved_folder import is_saved, saved_parts
from multipatch_jax.checkpoint.shipped import local_folder
from multipatch_jax.checkpoint.whole import own_subtrees

__all__ = [
    "CheckpointError",
    "config_from_hf",
    "config_to_hf",
    "default_dtype",
    "export_hf",
    "fetch",
    "fetch_if_there",
    "find_folder",
    "from_pretrained",
    "is_saved",
    "local_folder",
    "needed_files",
    "own_subtrees",
    "read_config",
    "read_hf_config",
    "save_pretrained",
    "saved_parts",
]
