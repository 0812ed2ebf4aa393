"""Load models from a hub id, a Hugging Face folder or a saved folder, and save them in either layout.

A saved folder is one that `save_pretrained` wrote (see `saved_folder`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from multipatch_jax.checkpoint import hf_export, hf_folder, saved_folder
from multipatch_jax.checkpoint.hf_config import read_hf_config
from multipatch_jax.checkpoint.hub import download, fetch_if_there
from multipatch_jax.checkpoint.other_folder import other_folder
from multipatch_jax.checkpoint.saved_folder import CONFIG_FILE, is_saved, load_saved, read_saved_config
from multipatch_jax.checkpoint.shipped import local_folder
from multipatch_jax.checkpoint.side_files import SIDE_FILES, copy_side_files
from multipatch_jax.checkpoint.whole import check_whole, own_subtrees
from multipatch_jax.config import DTYPES, ModelConfig
from multipatch_jax.files import new_folder, require_path
from multipatch_jax.params import PARTS, check_parts, flatten, merge_lora, unflatten

Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def from_pretrained(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    parts: Iterable[str] = ("vision", "connector"),
    sharding: Shardings | None = None,
    progress: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    ignore_keys: Collection[str] = (),
) -> tuple[ModelConfig, dict[str, Any]]:
    """Load a model's config and params.

    Args:
      name_or_path: a hub id ("HuggingFaceTB/SmolVLM-256M-Instruct"), a folder in Hugging Face's layout (config.json,
        preprocessor_config.json, one or several .safetensors), a folder that `save_pretrained` wrote, or
        "multipatch/reader", the small model that comes with the package.
      dtype: dtype of the params ("bfloat16", "float32" or "float16"); None keeps the stored dtype and every bit.
      parts: which of "vision", "connector", "embeddings" and "text" to load, or "all". Only these are read from the
        disk, and only shards that hold them are downloaded. "text" (decoder and lm_head, or a retriever's projection)
        includes "embeddings". From a folder of `save_pretrained`, subtrees of a user's own are loaded with any parts.
      sharding: a function (path, shape) -> sharding of that parameter, with paths such as
        "vision_model/post_layernorm/scale". None puts all params on JAX's default device.
      progress: whether to show a bar that counts tensors. A folder of `save_pretrained` is read without a bar.
      revision: a branch, a tag or a commit hash of the hub id; None is the main branch.
      token: of a user who may read the hub id; None or True is the one that is stored on this machine, if any.
      cache_dir: the cache's folder for a hub id; None is the hub client's own.
      local_files_only: whether to look for a hub id only in the cache.
      ignore_keys: names of unknown keys in the JSON files that are to be ignored. A key that we do not know may change
        the visual tokens, so it is an error otherwise.

    Returns:
      (config, params); params are a plain nested dict of `jax.Array`.

    Raises:
      FileNotFoundError: there is no such folder or hub id, or a file is missing from it.
      CheckpointError: a file is damaged, or a tensor is missing, unexpected, or of another shape or dtype.
      ValueError: a config key or value, a part or the dtype is not supported.
    """
    dtype, parts = _check_dtype(dtype), _check_names(parts)
    if sharding is not None and not callable(sharding):
        raise ValueError(f"sharding must be a function (path, shape) -> sharding, got {type(sharding).__name__}.")
    folder = local_folder(name_or_path)
    hub = _hub_options(revision, token, cache_dir, local_files_only)
    if isinstance(ignore_keys, str) or not isinstance(ignore_keys, Collection):
        raise ValueError(f'ignore_keys must be a tuple of keys such as ("key",), got {ignore_keys!r:.50}.')
    if folder is None:
        folder = download(str(name_or_path), parts, ignore_keys=ignore_keys, **hub)
    config = read_config(folder, ignore_keys)
    parts = check_parts(config, parts)
    if is_saved(folder):
        arrays = load_saved(folder, config, parts, dtype)
    else:
        arrays = hf_folder.load(folder, config, parts, dtype, progress)
    # Without a sharding, arrays stay uncommitted: like jit's own results, they follow the arrays they are used with.
    return config, unflatten(
        {path: jax.device_put(x, sharding(path, x.shape) if sharding else None) for path, x in arrays}
    )


def default_dtype() -> str | None:
    """Return the `dtype` that commands load params in unless they are told: float32 on a CPU, elsewhere as stored."""
    return "float32" if jax.default_backend() == "cpu" else None


def find_folder(
    name_or_path: str | Path,
    parts: Iterable[str] = ("vision", "connector"),
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    ignore_keys: Collection[str] = (),
) -> Path:
    """Return a model's folder: a path as it is, the folder of a model of the package, or that of a download.

    For a hub id it downloads the weights of `parts`, and the files that a processor needs, such as the tokenizer. The
    arguments are those of `from_pretrained`.
    """
    folder = local_folder(name_or_path)
    hub = _hub_options(revision, token, cache_dir, local_files_only)
    if folder is not None:
        return folder
    from huggingface_hub import try_to_load_from_cache

    repo_id = str(name_or_path)
    folder = download(repo_id, _check_names(parts), ignore_keys=ignore_keys, **hub)
    hub["revision"] = folder.name  # the cache names a snapshot's folder after its commit
    for name in SIDE_FILES:
        # The cache also knows which files a commit does not have.
        if try_to_load_from_cache(repo_id, name, cache_dir, folder.name) is None:
            fetch_if_there(repo_id, name, **hub)
    return folder


def needed_files(folder: Path, parts: Iterable[str]) -> list[Path]:
    """Return the files of a folder in either layout that a model's config, `parts` and processor are read from."""
    sides = [folder / name for name in SIDE_FILES if (folder / name).is_file()]
    if is_saved(folder):
        return sorted({*sides, *(file for file in folder.rglob("*") if file.is_file())})
    shards = hf_folder.needed_shards(folder, read_config(folder), parts)
    return sorted({folder / "config.json", *sides, *(shards or folder.glob("*.safetensors"))})


def read_config(folder: Path, ignore_keys: Collection[str] = ()) -> ModelConfig:
    """Read the config of a folder in either layout, ours or Hugging Face's, without reading weights.

    Args:
      ignore_keys: as in `from_pretrained`.

    Raises:
      FileNotFoundError: the folder has no config file.
      ValueError: the config is not valid JSON, or has a key or value that is not supported.
    """
    if is_saved(folder):
        return read_saved_config(folder)
    if (folder / "config.json").is_file():
        return read_hf_config(folder, ignore_keys)
    known = f"{folder} has neither {CONFIG_FILE} nor config.json, so it is not a model's folder."
    raise FileNotFoundError(f"{known} {other_folder(folder)}".strip())


def save_pretrained(
    path: str | Path, config: ModelConfig, params: dict[str, Any], *, base: str | Path | None = None
) -> None:
    """Write a folder that `from_pretrained` reads: the config as JSON, the params with Orbax, and digests of both.

    The folder is written under a temporary name beside `path` and then renamed, so that a half-written model is never
    visible.

    Args:
      params: whole parts of the model. Beside them there may be subtrees of your own, such as a head; they are saved,
        and loaded with any parts.
      base: a folder, a Hugging Face one or a saved one, whose tokenizer, chat templates, and settings of processors and
        text generation are copied (`SIDE_FILES`), so that `Processor.from_pretrained` reads the new folder. None copies
        nothing.

    Raises:
      ValueError: `params` do not fit `config`, or hold something else than arrays of floating-point numbers.
      FileNotFoundError: `base` is no folder.
      FileExistsError: `path` exists.
    """
    path = require_path("path", path)
    check_whole(config, params)
    with new_folder(path) as folder:
        if base is not None:
            copy_side_files(require_path("base", base), folder)
        saved_folder.write(folder, config, unflatten(flatten(params)))


def export_hf(
    path: str | Path,
    config: ModelConfig,
    params: dict[str, Any],
    *,
    base: str | Path | None = None,
    dtype: Any = None,
) -> None:
    """Write a folder in Hugging Face's layout, which transformers loads: the inverse of `from_pretrained`.

    As in `save_pretrained`, a half-written folder is never visible.

    Args:
      params: LoRA factors among them (`mp.params.add_lora`) are merged into the kernels.
      base: a folder of the same model, a Hugging Face one or a saved one. The tensors that `params` lack (the language
        model, if only tower and connector were loaded) are taken from it, and its other files are copied: tokenizer,
        generation settings. Its weights in other formats, its sub-folders, and links that lead out of it are not
        copied. What `config` says replaces what its config.json, preprocessor_config.json and processor_config.json
        say; their other keys are kept. Of a saved folder, the parts that it holds are taken. None writes only the
        tensors in `params`.
      dtype: dtype of the tensors ("bfloat16", "float32" or "float16"), those of the base included; None keeps theirs.

    Raises:
      ValueError: `params` do not fit `config` or hold subtrees that are not the model's, `base` is of another kind of
        model, or the config has a setting that Hugging Face's files cannot express (see `config_to_hf`).
      CheckpointError: `base` does not hold the tensors that `params` lack, or a number is infinite in `dtype`.
      FileNotFoundError: `base` does not exist or has no weights.
      FileExistsError: `path` exists.
    """
    path, dtype = require_path("path", path), _check_dtype(dtype)
    if isinstance(params, Mapping):
        try:
            params = merge_lora(params)
        except (KeyError, AttributeError, TypeError):
            raise ValueError('params["lora"] must hold factors a and b of kernels, as add_lora makes them.') from None
    check_whole(config, params)
    own = own_subtrees(config, params)
    if own:
        raise ValueError(
            f"Hugging Face's layout has no place for {', '.join(own)}: leave it out of the params that are exported, "
            f"or use save_pretrained."
        )
    with new_folder(path) as folder:
        hf_export.write(folder, config, params, None if base is None else require_path("base", base), dtype)


def _hub_options(revision: Any, token: Any, cache_dir: Any, local_files_only: Any) -> dict[str, Any]:
    """Return the options of a download by name, or raise a ValueError that names one of another kind."""
    if not isinstance(revision, str | None) or revision == "":
        raise ValueError(f"revision must be a branch, tag or commit, or None, got {revision!r:.50}.")
    if not isinstance(token, str | bool | None):
        raise ValueError(f"token must be a text, a bool or None, got {type(token).__name__}.")
    if not isinstance(local_files_only, bool):
        raise ValueError(f"local_files_only must be True or False, got {local_files_only!r:.50}.")
    cache_dir = None if cache_dir is None else require_path("cache_dir", cache_dir)
    return {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}


def _check_dtype(dtype: Any) -> Any:
    """Return a dtype as NumPy's, and None as None."""
    if dtype is None:
        return None
    try:
        found = jax.numpy.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        name = f"{dtype!r:.50}" if found is None else found.name
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} or None, got {name}.")
    return found


def _check_names(parts: Iterable[str]) -> tuple[str, ...]:
    """Return `parts`, one name or several, as a tuple; "all" stands for all of them."""
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        parts = (parts,)
    parts = tuple(parts)
    if parts == ("all",):
        return PARTS
    if not parts or any(part not in PARTS for part in parts):
        raise ValueError(f'parts must name some of {PARTS}, or be "all", got {parts!r:.200}.')
    return parts
