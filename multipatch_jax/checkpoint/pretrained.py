"""Loading and saving: a hub id, a Hugging Face folder, or a folder that `save_pretrained` wrote."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from multipatch_jax.checkpoint import hf_folder
from multipatch_jax.checkpoint.hf_config import read_hf_config
from multipatch_jax.checkpoint.hf_folder import CheckpointError
from multipatch_jax.checkpoint.hub import download
from multipatch_jax.config import DTYPES, ModelConfig, config_from_dict
from multipatch_jax.files import new_folder, read_json, write_json
from multipatch_jax.params import (
    PARTS,
    check_params,
    check_parts,
    flatten,
    merge_lora,
    mismatch_report,
    param_shapes,
    unflatten,
)

CONFIG_FILE = "multipatch_config.json"  # marks a folder of ours; the arrays lie beside it in params/
Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def from_pretrained(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    parts: Iterable[str] = ("vision", "connector"),
    sharding: Shardings | None = None,
    progress: bool = False,
) -> tuple[ModelConfig, dict[str, Any]]:
    """Loads a model's config and params.

    Args:
      name_or_path: a hub id ("HuggingFaceTB/SmolVLM-256M-Instruct"), a folder in Hugging Face's layout (config.json,
        preprocessor_config.json, one or several .safetensors), or a folder of `save_pretrained`.
      dtype: of the params ("bfloat16", "float32", "float16"); None keeps the file's, bit for bit.
      parts: which of "vision", "connector", "embeddings" and "text" to read; nothing else is read from the disk, and
        no other shard is downloaded. "text" (decoder and lm_head) is carried for round trips, not computed with.
      sharding: gives the sharding of a parameter from its path ("vision_model/post_layernorm/scale") and shape; None
        puts all on the first device.
      progress: shows a bar, a tick a tensor.

    Returns:
      (config, params), params being a plain nested dict of `jax.Array`.

    Raises:
      FileNotFoundError: no such folder or id, or a file is missing from it.
      CheckpointError, ValueError: the files are not a model that we know, wholly and exactly.
    """
    if dtype is not None:
        dtype = _check_dtype(dtype)
    folder = find_folder(name_or_path, parts)
    config = read_config(folder)
    parts = check_parts(config, parts)
    if (folder / CONFIG_FILE).is_file():
        return config, _load_saved(folder, config, parts, dtype, sharding)
    arrays = hf_folder.load(folder, config, parts, dtype, progress)
    # Without a sharding, arrays stay uncommitted, as jit's own results: what they meet decides where they are.
    return config, unflatten(
        {path: jax.device_put(x, sharding(path, x.shape) if sharding else None) for path, x in arrays}
    )


def find_folder(name_or_path: str | Path, parts: Iterable[str] = ("vision", "connector")) -> Path:
    """The folder itself, or the one that a hub id's files for `parts` were downloaded into."""
    folder = Path(name_or_path)
    return folder if folder.is_dir() else download(str(name_or_path), parts)


def read_config(folder: Path) -> ModelConfig:
    """The config of a folder of ours or of Hugging Face's; no weights are read."""
    if (folder / CONFIG_FILE).is_file():
        return config_from_dict(read_json(folder / CONFIG_FILE))
    if (folder / "config.json").is_file():
        return read_hf_config(folder)
    raise FileNotFoundError(f"{folder} has neither {CONFIG_FILE} nor config.json, so it is not a model's folder.")


def saved_parts(folder: Path) -> tuple[str, ...]:
    """The parts that a folder of ours holds."""
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}, so it is not a folder that save_pretrained wrote.")
    return _parts_of(read_config(folder), _saved_arrays(folder))


def save_pretrained(path: str | Path, config: ModelConfig, params: dict[str, Any]) -> None:
    """Writes a folder that `from_pretrained` reads: the config as JSON, the params with Orbax.

    Written under a temporary name beside `path` and then renamed, so a half-written model is never visible.

    Raises:
      ValueError: `params` are not of this config. FileExistsError: `path` exists.
    """
    import orbax.checkpoint as ocp  # slow to import, and only needed here

    _check_whole(config, params)
    with new_folder(Path(path)) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / "params").absolute(), params)
        write_json(folder / CONFIG_FILE, dataclasses.asdict(config))


def export_hf(path: str | Path, config: ModelConfig, params: dict[str, Any], *, base: str | Path | None = None) -> None:
    """Writes a folder in Hugging Face's layout, which transformers loads: the inverse of `from_pretrained`.

    Args:
      params: LoRA factors among them (`add_lora`) are merged.
      base: a Hugging Face folder of the same model, to take from it what `params` lack (the language model, if only
        the tower or connector was trained) and all other files. Without one, transformers finds only what is in
        `params`.

    Raises:
      ValueError: `params` are not of this config, or its tiling has policies that Hugging Face's files cannot say.
      FileExistsError: `path` exists.
    """
    params = merge_lora(params)
    _check_whole(config, params)
    with new_folder(Path(path)) as folder:
        hf_folder.write(folder, config, params, None if base is None else Path(base))


def _check_whole(config: ModelConfig, params: dict[str, Any]) -> None:
    """Every part that `params` have anything of must be there wholly, and nothing else."""
    if not isinstance(params, dict):
        raise ValueError(f"params must be a nested dict of arrays, got {type(params).__name__}.")
    check_params(params, config, _parts_of(config, flatten(params)) or PARTS[:2])


def _parts_of(config: ModelConfig, paths: Iterable[str]) -> tuple[str, ...]:
    paths = set(paths)
    return tuple(part for part in PARTS if param_shapes(config, (part,)).keys() & paths)


def _check_dtype(dtype: Any) -> np.dtype:
    name = jax.numpy.dtype(dtype).name
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or None, got {name}.")
    return jax.numpy.dtype(dtype)


def _load_saved(
    folder: Path, config: ModelConfig, parts: tuple[str, ...], dtype: Any, sharding: Shardings | None
) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    expected, found = param_shapes(config, parts), _saved_arrays(folder)
    known = param_shapes(config, PARTS)
    report = mismatch_report(expected, {path: tuple(m.shape) for path, m in found.items()}, known)
    if report:
        raise CheckpointError(f"{folder} does not hold {config.model_type} params of its own config:\n{report}")
    target = unflatten(
        {
            path: jax.ShapeDtypeStruct(
                shape, dtype or found[path].dtype, sharding=sharding(path, shape) if sharding else None
            )
            for path, shape in expected.items()
        }
    )
    restore = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        params = checkpointer.restore((folder / "params").absolute(), args=restore)
    return params if sharding else jax.tree.map(jax.device_put, params)


def _saved_arrays(folder: Path) -> dict[str, Any]:
    """Path -> metadata (shape, dtype) of each array that a folder of ours holds."""
    import orbax.checkpoint as ocp

    arrays = (folder / "params").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return flatten(checkpointer.metadata(arrays).item_metadata.tree)
        except Exception as error:
            raise CheckpointError(f"{arrays} is not a checkpoint that Orbax can read: {error}") from error
