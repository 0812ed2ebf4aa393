"""Load models from a hub id, a Hugging Face folder or a saved folder, and save them in either layout.

A saved folder is one that `save_pretrained` wrote: the config as JSON, and the params as an Orbax checkpoint.
"""

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

CONFIG_FILE = "multipatch_config.json"  # marks a saved folder; its arrays lie beside this file, in params/
Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def from_pretrained(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    parts: Iterable[str] = ("vision", "connector"),
    sharding: Shardings | None = None,
    progress: bool = False,
) -> tuple[ModelConfig, dict[str, Any]]:
    """Load a model's config and params.

    Args:
      name_or_path: a hub id ("HuggingFaceTB/SmolVLM-256M-Instruct"), a folder in Hugging Face's layout (config.json,
        preprocessor_config.json, one or several .safetensors), or a folder that `save_pretrained` wrote.
      dtype: dtype of the params ("bfloat16", "float32" or "float16"); None keeps the stored dtype and every bit.
      parts: which of "vision", "connector", "embeddings" and "text" to load. Only these are read from the disk, and
        only shards that hold them are downloaded. "text" (decoder and lm_head, or a retriever's projection) includes
        "embeddings". No function here runs the decoder: its params are loaded only to be saved again.
      sharding: a function (path, shape) -> sharding of that parameter, with paths such as
        "vision_model/post_layernorm/scale". None puts all params on JAX's default device.
      progress: whether to show a bar that counts tensors. A folder of `save_pretrained` is read without a bar.

    Returns:
      (config, params); params are a plain nested dict of `jax.Array`.

    Raises:
      FileNotFoundError: there is no such folder or hub id, or a file is missing from it.
      CheckpointError: a file is damaged, or a tensor is missing, unexpected, or of another shape or dtype.
      ValueError: a config key or value, a part or the dtype is not supported.
    """
    if dtype is not None:
        dtype = _check_dtype(dtype)
    folder = find_folder(name_or_path, parts)
    config = read_config(folder)
    parts = check_parts(config, parts)
    if (folder / CONFIG_FILE).is_file():
        return config, _load_saved(folder, config, parts, dtype, sharding)
    arrays = hf_folder.load(folder, config, parts, dtype, progress)
    # Without a sharding, arrays stay uncommitted: like jit's own results, they follow the arrays they are used with.
    return config, unflatten(
        {path: jax.device_put(x, sharding(path, x.shape) if sharding else None) for path, x in arrays}
    )


def find_folder(name_or_path: str | Path, parts: Iterable[str] = ("vision", "connector")) -> Path:
    """Return the folder `name_or_path`, or the folder that the files of this hub id for `parts` are downloaded into."""
    folder = Path(name_or_path)
    return folder if folder.is_dir() else download(str(name_or_path), parts)


def read_config(folder: Path) -> ModelConfig:
    """Read the config of a folder in either layout, ours or Hugging Face's, without reading weights.

    Raises:
      FileNotFoundError: the folder has no config file.
      ValueError: the config is not valid JSON, or has a key or value that is not supported.
    """
    if (folder / CONFIG_FILE).is_file():
        return config_from_dict(read_json(folder / CONFIG_FILE))
    if (folder / "config.json").is_file():
        return read_hf_config(folder)
    raise FileNotFoundError(f"{folder} has neither {CONFIG_FILE} nor config.json, so it is not a model's folder.")


def saved_parts(folder: Path) -> tuple[str, ...]:
    """Return the parts (of `mp.params.PARTS`) that a folder written by `save_pretrained` holds.

    Raises:
      FileNotFoundError: `save_pretrained` did not write this folder.
      CheckpointError: Orbax cannot read the folder's params.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}, so it is not a folder that save_pretrained wrote.")
    return _parts_of(read_config(folder), _saved_arrays(folder))


def save_pretrained(path: str | Path, config: ModelConfig, params: dict[str, Any]) -> None:
    """Write a folder that `from_pretrained` reads: the config as JSON, the params with Orbax.

    The folder is written under a temporary name beside `path` and then renamed, so that a half-written model is never
    visible.

    Raises:
      ValueError: `params` do not fit `config`.
      FileExistsError: `path` exists.
    """
    import orbax.checkpoint as ocp  # slow to import, and only needed here

    _check_whole(config, params)
    with new_folder(Path(path)) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / "params").absolute(), params)
        write_json(folder / CONFIG_FILE, dataclasses.asdict(config))


def export_hf(path: str | Path, config: ModelConfig, params: dict[str, Any], *, base: str | Path | None = None) -> None:
    """Write a folder in Hugging Face's layout, which transformers loads: the inverse of `from_pretrained`.

    As in `save_pretrained`, a half-written folder is never visible.

    Args:
      params: LoRA factors among them (`mp.params.add_lora`) are merged into the kernels.
      base: a Hugging Face folder of the same model. The tensors that `params` lack (the language model, if only tower
        and connector were loaded) are taken from it, and its other files are copied: tokenizer, generation settings,
        and also config.json and preprocessor_config.json. None writes only the tensors in `params`.

    Raises:
      ValueError: `params` do not fit `config`, or the config has a tiling setting that Hugging Face's files cannot
        express (see `config_to_hf`).
      CheckpointError: `base` does not hold the tensors that `params` lack.
      FileNotFoundError: `base` does not exist or has no weights.
      FileExistsError: `path` exists.
    """
    params = merge_lora(params)
    _check_whole(config, params)
    with new_folder(Path(path)) as folder:
        hf_folder.write(folder, config, params, None if base is None else Path(base))


def _check_whole(config: ModelConfig, params: dict[str, Any]) -> None:
    """Raise a ValueError unless `params` hold at least one part, and each part that they hold is whole.

    An unknown array inside the subtrees of these parts is refused too. Other top-level keys are not looked at.
    """
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
        raise CheckpointError(
            f"{folder} does not hold {config.model_type} params of its own config "
            f"(- missing, + unexpected, ~ other shape):\n{report}"
        )
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
    """Return {path: metadata (shape, dtype)} of each array in a folder that `save_pretrained` wrote."""
    import orbax.checkpoint as ocp

    arrays = (folder / "params").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return flatten(checkpointer.metadata(arrays).item_metadata.tree)
        except Exception as error:
            raise CheckpointError(f"{arrays} is not a checkpoint that Orbax can read: {error}") from error
