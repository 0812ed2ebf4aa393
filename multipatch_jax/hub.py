"""Files of a hub repository, through huggingface_hub and its cache."""

import re
from collections.abc import Iterable
from pathlib import Path

from multipatch_jax import hf_folder
from multipatch_jax.hf_config import read_hf_config


def download(repo_id: str, parts: Iterable[str]) -> Path:
    """Fetches the files that `parts` need, no other shard, and returns their folder.

    Raises:
      FileNotFoundError: no such repository or file, or the hub cannot be reached and its cache does not have them.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise FileNotFoundError(f"There is no folder {repo_id}, and it is not a hub id such as owner/name.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    def get(file: str) -> Path:
        return Path(hf_hub_download(repo_id, file))

    def get_if_there(file: str) -> Path | None:
        try:
            return get(file)
        except EntryNotFoundError:
            return None

    try:
        folder = get("config.json").parent
        if not get_if_there("preprocessor_config.json"):
            get_if_there("processor_config.json")
        if get_if_there(hf_folder.INDEX):
            for shard in hf_folder.needed_shards(folder, read_hf_config(folder), parts):
                get(shard.name)
        else:
            get(hf_folder.WEIGHTS)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"There is no folder {repo_id}, and the hub did not give it ({reason}). "
            f"Check the name and the connection, or pass the path of a downloaded folder."
        ) from error
    return folder
