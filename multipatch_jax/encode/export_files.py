"""The files of an export: their digests in the manifest, and how they are checked before anything of them is run.

The digests show damage. They do not show who wrote a folder: its program is to be trusted like any other program.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from multipatch_jax.files import digest_of_file, read_json, write_json

MANIFEST, PARAMS = "manifest.json", "params.npz"
VERSION = 2  # of the layout; the first had no digests


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Add the SHA-256 of each file of the folder and of the manifest itself to the manifest, and write it."""
    manifest["sha256"] = {path.name: digest_of_file(path) for path in sorted(folder.iterdir())}
    manifest["manifest_sha256"] = digest_of_manifest(manifest)
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest.

    Raises:
      FileNotFoundError: the folder has none.
      ValueError: it is not valid JSON, of another version's layout, or was changed since it was written.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}, so it is not a folder that export_encoder wrote.")
    manifest = read_json(file)
    if manifest.get("multipatch_jax_export") != VERSION:
        found = f"{manifest.get('multipatch_jax_export')!r:.50}"
        raise ValueError(f"{file} must be of an export of version {VERSION}, got {found}: export the model again.")
    if manifest.get("manifest_sha256") != digest_of_manifest(manifest):
        raise ValueError(f"{file} changed since it was exported: copy or export the model again.")
    return manifest


def checked_file(folder: Path, name: Any, manifest: dict[str, Any]) -> Path:
    """Return the path of a file that the manifest names.

    Raises:
      ValueError: the name is not a plain one, or the file is missing or was changed since it was written.
    """
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"{folder / MANIFEST} names a file {name!r:.50}, which is no plain name of one in its folder.")
    if not (folder / name).is_file():
        raise ValueError(f"{folder / name} is missing: copy or export the model again.")
    if manifest["sha256"].get(name) != digest_of_file(folder / name):
        raise ValueError(f"{folder / name} changed since it was exported: copy or export the model again.")
    return folder / name


def write_params(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by their paths; bfloat16 as its bits in uint16, because NumPy's files have no bfloat16."""
    stored: dict[str, Any] = {name: x.view(np.uint16) if x.dtype == jnp.bfloat16 else x for name, x in arrays.items()}
    np.savez(folder / PARAMS, **stored)


def read_params(folder: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read the arrays that `write_params` wrote.

    Raises:
      ValueError: the file is missing or changed, or does not hold the arrays that the manifest describes.
    """
    file = checked_file(folder, PARAMS, manifest)
    described = manifest["params"]
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name].view(jnp.dtype(x["dtype"])) for name, x in described.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} does not hold the params that {MANIFEST} describes ({error}).") from None
    wrong = [name for name, x in arrays.items() if list(x.shape) != described[name]["shape"]]
    if wrong:
        raise ValueError(f"{file} does not hold the params that {MANIFEST} describes: {wrong[0]} has another shape.")
    return arrays


def digest_of_manifest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, without the digest itself."""
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
