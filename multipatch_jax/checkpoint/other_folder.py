"""Find the folder that was meant, where a folder without config.json was given."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from multipatch_jax.checkpoint.hf_config import CONFIG

MOST_LOOKED_AT, MOST_NAMED = 1000, 5


def other_folder(folder: Path) -> str:
    """Return a sentence that says what kind of folder this is and what to pass in its place, or "".

    It knows a hub cache, a repository's folder in a hub cache, and folders whose sub-folders are models.
    """
    inside = [path for path in itertools.islice(folder.iterdir(), MOST_LOOKED_AT) if path.is_dir()]
    repos = sorted(path.name for path in inside if path.name.startswith("models--"))
    if repos:
        ids = [name.removeprefix("models--").replace("--", "/") for name in repos]
        return f"It is a hub cache: pass one of its hub ids, {_names(ids)}, with cache_dir={str(folder)!r}."
    if (folder / "snapshots").is_dir():
        snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
        if not snapshots:
            return "It is a repository in a hub cache, but it holds no snapshot: download it again."
        return f"It is a repository in a hub cache: pass a snapshot, {_names(map(str, snapshots))}, or its hub id."
    models = sorted(str(path) for path in inside if (path / CONFIG).is_file())
    return f"These of its folders have a {CONFIG}: pass {_names(models)}." if models else ""


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return " or ".join(names[:MOST_NAMED]) + (f" (and {len(names) - MOST_NAMED} more)" if names[MOST_NAMED:] else "")
