"""Files of a hub repository, through huggingface_hub and its cache."""

import re
from collections.abc import Iterable
from pathlib import Path

from multipatch_jax.checkpoint import hf_folder
from multipatch_jax.checkpoint.hf_config import read_hf_config
from multipatch_jax.checkpoint.hf_folder import INDEX, WEIGHTS


def fetch(repo_id: str, file: str) -> Path:
    """One file of a repository, from the cache or the hub.

    Raises:
      FileNotFoundError: no such repository or file, or the hub cannot be reached and its cache does not have it.
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
    """The same for a file that a repository may lack; None where it does, or where an unreachable hub cannot say."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return fetch(repo_id, file)
    except FileNotFoundError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


def download(repo_id: str, parts: Iterable[str]) -> Path:
    """Fetches the files that `parts` need, no other shard, and returns their folder; raises as `fetch`."""
    folder = fetch(repo_id, "config.json").parent
    if not fetch_if_there(repo_id, "preprocessor_config.json"):
        fetch_if_there(repo_id, "processor_config.json")
    if fetch_if_there(repo_id, INDEX):
        for shard in hf_folder.needed_shards(folder, read_hf_config(folder), parts):
            fetch(repo_id, shard.name)
    else:
        fetch(repo_id, WEIGHTS)
    return folder
