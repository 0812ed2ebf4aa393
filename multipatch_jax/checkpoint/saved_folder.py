"""The layout of a saved folder: the config as JSON, the params as an Orbax checkpoint, and digests of both.

| name | content |
|---|---|
| `multipatch_config.json` | the config; it marks a saved folder |
| `params/` | the arrays, as an Orbax checkpoint |
| `multipatch_digests.json` | SHA-256 of the config's file and of each array; folders of earlier versions lack it |
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from multipatch_jax.checkpoint.error import CheckpointError
from multipatch_jax.checkpoint.finite import check_numbers
from multipatch_jax.checkpoint.whole import own_subtrees, parts_of
from multipatch_jax.config import DTYPES, ModelConfig, config_from_dict
from multipatch_jax.files import digest_of_file, read_json, write_json
from multipatch_jax.params import PARTS, Params, flatten, mismatch_report, param_shapes, unflatten

CONFIG_FILE, DIGESTS, ARRAYS = "multipatch_config.json", "multipatch_digests.json", "params"


def is_saved(folder: Path) -> bool:
    """Return whether `save_pretrained` wrote this folder."""
    return (folder / CONFIG_FILE).is_file()


def write(folder: Path, config: ModelConfig, params: Params) -> None:
    """Write a config and params, which `check_whole` accepts, into an empty folder."""
    import orbax.checkpoint as ocp  # slow to import, and only needed here

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / ARRAYS).absolute(), params)
    write_json(folder / CONFIG_FILE, dataclasses.asdict(config))
    digests = {path: _digest(np.asarray(x)) for path, x in flatten(params).items()}
    write_json(folder / DIGESTS, {"config": digest_of_file(folder / CONFIG_FILE), "params": digests})


def read_saved_config(folder: Path) -> ModelConfig:
    """Read the config of a saved folder.

    Raises:
      CheckpointError: the file was changed since it was saved.
      ValueError: it is not valid JSON, or not a config.
    """
    digests = _digests(folder)
    if digests is not None and digests["config"] != digest_of_file(folder / CONFIG_FILE):
        raise _changed(folder, [CONFIG_FILE])
    content = read_json(folder / CONFIG_FILE)
    try:
        return config_from_dict(content)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from None


def saved_parts(folder: str | Path) -> tuple[str, ...]:
    """Return the parts (of `mp.params.PARTS`) that a folder written by `save_pretrained` holds.

    Raises:
      FileNotFoundError: `save_pretrained` did not write this folder.
      CheckpointError: Orbax cannot read the folder's params.
    """
    folder = Path(folder)
    if not is_saved(folder):
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}, so it is not a folder that save_pretrained wrote.")
    return parts_of(read_saved_config(folder), _stored(folder))


def load_saved(
    folder: Path, config: ModelConfig, parts: tuple[str, ...], dtype: Any = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Read the parameters of `parts` and all subtrees of the user's own, and return an iterator over (path, array).

    Raises:
      CheckpointError: the folder does not hold what its config asks for, Orbax cannot read it, an array was changed
        since it was saved, or (by the iterator) one holds a number that is infinite in `dtype`.
    """
    stored = _stored(folder)
    held = parts_of(config, stored)
    missing = [part for part in parts if part not in held]
    if held and missing:
        raise CheckpointError(
            f"{folder} was saved with {', '.join(held)} and lacks {', '.join(missing)}: convert or save the model "
            f"again, with these parts too."
        )
    own = own_subtrees(config, {path.split("/")[0] for path in stored})
    shapes = {path: tuple(getattr(array, "shape", ())) for path, array in stored.items()}
    wanted = dict(param_shapes(config, parts)) | {p: x for p, x in shapes.items() if p.split("/")[0] in own}
    report = mismatch_report(wanted, shapes, param_shapes(config, PARTS))
    if report:
        raise CheckpointError(
            f"{folder} does not hold {config.model_type} params of its own config "
            f"(- missing, + unexpected, ~ other shape):\n{report}"
        )
    for path in wanted:
        name = np.dtype(stored[path].dtype).name
        if name not in DTYPES:
            raise CheckpointError(f"{folder}: {path} must be one of {', '.join(DTYPES)}, got {name}.")
    arrays = _read(folder, list(wanted))
    digests = _digests(folder)
    if digests is not None:
        changed = [path for path, array in arrays.items() if digests["params"].get(path) != _digest(array)]
        if changed:
            raise _changed(folder, changed)

    def cast() -> Iterator[tuple[str, np.ndarray]]:
        while arrays:  # one array at a time, so that few are in memory in both dtypes
            path, array = arrays.popitem()
            check_numbers(f"{folder}: {path}", array, dtype)
            yield path, array if dtype is None else array.astype(dtype)

    return cast()


def _stored(folder: Path) -> dict[str, Any]:
    """Return {path: metadata (shape, dtype)} of each array in a saved folder."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return flatten(checkpointer.metadata((folder / ARRAYS).absolute()).item_metadata.tree)
        except Exception as error:  # whatever the library raises for damaged files
            raise _unreadable(folder, error) from error


def _read(folder: Path, paths: list[str]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    target = unflatten({path: 0 for path in paths})
    as_numpy = unflatten({path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths})
    restore = ocp.args.PyTreeRestore(item=target, restore_args=as_numpy, partial_restore=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return flatten(checkpointer.restore((folder / ARRAYS).absolute(), args=restore))
        except Exception as error:
            raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    return CheckpointError(f"{folder / ARRAYS} is not a checkpoint that Orbax can read ({reason}).")


def _digests(folder: Path) -> dict[str, Any] | None:
    """Return the content of the file with the digests, or None if the folder has none.

    Raises:
      CheckpointError: the file is not as `write` makes it.
    """
    if not (folder / DIGESTS).is_file():
        return None
    content = read_json(folder / DIGESTS)
    if content.keys() != {"config", "params"} or not isinstance(content["params"], dict):
        raise CheckpointError(f'{folder / DIGESTS} must have the keys "config" and "params", got {sorted(content)}.')
    return content


def _changed(folder: Path, names: list[str]) -> CheckpointError:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return CheckpointError(
        f"{folder}: {shown} changed since the folder was saved, so it is damaged: save or download it again. If the "
        f"change is meant, delete {DIGESTS}."
    )


def _digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and numbers."""
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
