"""Download files of a Hugging Face hub repository, through huggingface_hub and its cache.

`revision`, `token`, `cache_dir` and `local_files_only` mean what they mean to huggingface_hub.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from multipatch_jax.checkpoint import hf_folder
from multipatch_jax.checkpoint.hf_config import read_hf_config
from multipatch_jax.checkpoint.hf_folder import INDEX, WEIGHTS


def fetch(
    repo_id: str,
    file: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the path of one file of a repository, downloaded if the cache lacks it.

    Args:
      revision: a branch, a tag or a commit hash; None is the main branch. A file that is cached for a commit hash is
        returned without a request to the hub.
      token: of a user who may read the repository; None or True is the one that is stored on this machine, if any.
      cache_dir: the cache's folder; None is the hub client's own.
      local_files_only: whether to look only into the cache.

    Raises:
      FileNotFoundError: `repo_id` is not of the form owner/name, the repository, revision or file does not exist, or
        the hub cannot be reached and the cache lacks the file.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise FileNotFoundError(f"There is no folder {repo_id}, and it is not a hub id such as owner/name.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(
            hf_hub_download(
                repo_id,
                file,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"There is no folder {repo_id}, and the hub did not give its {file} ({reason}). "
            f"Check the name and the connection, or pass the path of a downloaded folder."
        ) from error


def fetch_if_there(
    repo_id: str,
    file: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path | None:
    """Like `fetch`, for an optional file: return None if the repository lacks it.

    Also return None if the hub cannot be reached and the cache lacks the file.

    Raises:
      FileNotFoundError: `repo_id` is not of the form owner/name, or the hub gives another error (no such repository).
    """
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return fetch(
            repo_id, file, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
    except FileNotFoundError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


def download(
    repo_id: str,
    parts: Iterable[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    ignore_keys: Collection[str] = (),
) -> Path:
    """Download the config files and the weights that `parts` need, and return their folder.

    Of a sharded checkpoint, only the shards that hold a tensor of `parts` are downloaded. All files are of one commit,
    also if the repository changes meanwhile.

    Args:
      revision, token, cache_dir, local_files_only: as in `fetch`.
      ignore_keys: as in `read_hf_config`.

    Raises:
      FileNotFoundError: as in `fetch`.
      ValueError: the config or the index, which decide which shards are needed, cannot be read.
    """
    options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = fetch(repo_id, "config.json", revision=revision, **options).parent
    options["revision"] = folder.name  # the cache names a snapshot's folder after its commit
    if not fetch_if_there(repo_id, "preprocessor_config.json", **options):
        fetch_if_there(repo_id, "processor_config.json", **options)
    if (folder / WEIGHTS).is_file():
        return folder  # without asking the hub for an index
    if fetch_if_there(repo_id, INDEX, **options):
        for shard in hf_folder.needed_shards(folder, read_hf_config(folder, ignore_keys), parts):
            fetch(repo_id, shard.name, **options)
    else:
        fetch(repo_id, WEIGHTS, **options)
    return folder
