"""Download files of a Hugging Face hub repository, through huggingface_hub and its cache."""

import re
from collections.abc import Iterable
from pathlib import Path

from multipatch_jax.checkpoint import hf_folder
from multipatch_jax.checkpoint.hf_config import read_hf_config
from multipatch_jax.checkpoint.hf_folder import INDEX, WEIGHTS


def fetch(repo_id: str, file: str) -> Path:
    """Return the path of one file of a repository, downloaded if the cache lacks it.

    Raises:
      FileNotFoundError: `repo_id` is not of the form owner/name, the repository or file does not exist, or the hub
        cannot be reached and the cache lacks the file.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise FileNotFoundError(f"There is no folder {repo_id}, and it is not a hub id such as owner/name.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repo_id, file))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"There is no folder {repo_id}, and the hub did not give its {file} ({reason}). "
            f"Check the name and the connection, or pass the path of a downloaded folder."
        ) from error


def fetch_if_there(repo_id: str, file: str) -> Path | None:
    """Like `fetch`, for an optional file: return None if the repository lacks it.

    Also return None if the hub cannot be reached and the cache lacks the file.

    Raises:
      FileNotFoundError: `repo_id` is not of the form owner/name, or the hub gives another error (no such repository).
    """
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return fetch(repo_id, file)
    except FileNotFoundError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


def download(repo_id: str, parts: Iterable[str]) -> Path:
    """Download the config files and the weights that `parts` need, and return their folder.

    Of a sharded checkpoint, only the shards that hold a tensor of `parts` are downloaded.

    Raises:
      FileNotFoundError: as in `fetch`.
      ValueError: the config or the index, which decide which shards are needed, cannot be read.
    """
    folder = fetch(repo_id, "config.json").parent
    if not fetch_if_there(repo_id, "preprocessor_config.json"):
        fetch_if_there(repo_id, "processor_config.json")
    if fetch_if_there(repo_id, INDEX):
        for shard in hf_folder.needed_shards(folder, read_hf_config(folder), parts):
            fetch(repo_id, shard.name)
    else:
        fetch(repo_id, WEIGHTS)
    return folder
