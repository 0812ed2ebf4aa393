"""Download files of a Hugging Face hub repository, through huggingface_hub and its cache.

`revision`, `token`, `cache_dir` and `local_files_only` mean what they mean to huggingface_hub.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from multipatch_jax.checkpoint import hf_folder
from multipatch_jax.checkpoint.hf_config import CONFIG, PREPROCESSOR, PROCESSOR, read_hf_config
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
      ValueError: `repo_id` is no string.
    """
    if not isinstance(repo_id, str):
        raise ValueError(f"repo_id must be a hub id such as owner/name, got {type(repo_id).__name__}.")
    if Path(repo_id).is_file():
        raise FileNotFoundError(f"{repo_id} is a file: pass its folder.")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise FileNotFoundError(f"There is no folder {repo_id}, and it is not a hub id such as owner/name.")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if not local_files_only and not isinstance(try_to_load_from_cache(repo_id, file, cache_dir, revision), str):
            # One request first: without a network, the download below would try again for half a minute.
            try:
                get_hf_file_metadata(hf_hub_url(repo_id, file, revision=revision), token=token)
            except HfHubHTTPError:
                pass  # the hub has answered; the download reports this error, or tries again
            except Exception as error:  # of the HTTP library, which is not the same in all versions of the client
                raise LocalEntryNotFoundError(f"the hub cannot be reached: {error}") from error
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
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        has_only_a_number = "Client Error" in lines[0] and len(lines) > 1
        reason = lines[1 if has_only_a_number else 0].rstrip(".")
        commits = _cached_commits(repo_id, cache_dir)
        hint = f" The cache has {', '.join(commits[:5])}: pass one as revision=." if commits and not revision else ""
        raise FileNotFoundError(
            f"There is no folder {repo_id}, and the hub did not give its {file}"
            f"{f' of {revision}' if revision else ''} ({reason}). "
            f"Check the name, the connection and, of a private or gated repository, the token, or pass the path of a "
            f"downloaded folder.{hint}"
        ) from error


def _cached_commits(repo_id: str, cache_dir: str | Path | None) -> list[str]:
    """Return the commits of a repository that the cache holds files of."""
    from huggingface_hub.constants import HF_HUB_CACHE, REPO_ID_SEPARATOR

    name = REPO_ID_SEPARATOR.join(["models", *repo_id.split("/")])
    return sorted(path.name for path in (Path(cache_dir or HF_HUB_CACHE) / name / "snapshots").glob("*"))


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
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = fetch(repo_id, CONFIG, revision=revision, **options).parent
    options["revision"] = folder.name  # the cache names a snapshot's folder after its commit
    if not fetch_if_there(repo_id, PREPROCESSOR, **options):
        fetch_if_there(repo_id, PROCESSOR, **options)
    if (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        return folder  # a request for the index would fail without a network
    if fetch_if_there(repo_id, INDEX, **options):
        for shard in hf_folder.needed_shards(folder, read_hf_config(folder, ignore_keys), parts):
            fetch(repo_id, shard.name, **options)
    else:
        fetch(repo_id, WEIGHTS, **options)
    return folder
