"""Loading and saving: a hub id, a Hugging Face folder, or a folder that `save_pretrained` wrote."""

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from multipatch_jax import weights
from multipatch_jax.config import ModelConfig, config_from_dict
from multipatch_jax.hf_config import read_hf_config, read_json

CONFIG_FILE = "multipatch_config.json"  # marks a folder of ours; the arrays lie beside it in params/
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names of what we load


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded whole; nothing of it was loaded."""


def from_pretrained(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    parts: Iterable[str] = ("vision", "connector"),
    progress: bool = False,
) -> tuple[ModelConfig, dict[str, Any]]:
    """Loads a model's config and params.

    Args:
      name_or_path: a hub id ("HuggingFaceTB/SmolVLM-256M-Instruct"), a folder in Hugging Face's layout (config.json,
        preprocessor_config.json, one or several .safetensors), or a folder of `save_pretrained`.
      dtype: of the params ("bfloat16", "float32", "float16"); None keeps the file's, bit for bit.
      parts: which of "vision", "connector", "embeddings" and "text" to read; nothing else is read from the disk, and
        no other shard is downloaded. "text" (decoder and lm_head) is carried for round trips, not computed with.
      progress: shows a bar, a tick a tensor.

    Returns:
      (config, params), params being a plain nested dict of `jax.Array`.

    Raises:
      FileNotFoundError: no such folder or id, or a file is missing from it.
      CheckpointError, ValueError: the files are not a model that we know, wholly and exactly.
    """
    if dtype is not None:
        dtype = _check_dtype(dtype)
    folder = resolve(name_or_path, parts)
    config = read_config(folder)
    parts = weights.check_parts(config, parts)
    if (folder / CONFIG_FILE).is_file():
        return config, _load_saved(folder, config, parts, dtype)
    return config, _load_safetensors(folder, config, parts, dtype, progress)


def resolve(name_or_path: str | Path, parts: Iterable[str] = ("vision", "connector")) -> Path:
    """The folder itself, or the one that a hub id's files for `parts` were downloaded into."""
    folder = Path(name_or_path)
    return folder if folder.is_dir() else _download(str(name_or_path), parts)


def read_config(folder: Path) -> ModelConfig:
    """The config of a folder of ours or of Hugging Face's; no weights are read."""
    if (folder / CONFIG_FILE).is_file():
        return config_from_dict(read_json(folder / CONFIG_FILE))
    if (folder / "config.json").is_file():
        return read_hf_config(folder)
    raise FileNotFoundError(f"{folder} has neither {CONFIG_FILE} nor config.json, so it is not a model's folder.")


def save_pretrained(path: str | Path, config: ModelConfig, params: dict[str, Any]) -> None:
    """Writes a folder that `from_pretrained` reads: the config as JSON, the params with Orbax.

    Written under a temporary name beside `path` and then renamed, so a half-written model is never visible.

    Raises:
      ValueError: `params` are not of this config. FileExistsError: `path` exists.
    """
    path = Path(path)
    parts = tuple(part for part in weights.PARTS if _holds(params, config, part))
    weights.check_params(params, config, parts or ("vision", "connector"))
    if path.exists():
        raise FileExistsError(f"{path} exists; delete it or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        import orbax.checkpoint as ocp  # slow to import, and only needed here

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((temporary / "params").absolute(), params)
        (temporary / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's folders are private
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _holds(params: dict[str, Any], config: ModelConfig, part: str) -> bool:
    if part in ("embeddings", "text") and config.text is None:
        return False
    return any(path in weights.flatten(params) for path in weights.param_shapes(config, (part,)))


def _check_dtype(dtype: Any) -> np.dtype:
    name = jax.numpy.dtype(dtype).name
    if name not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES.values())} or None, got {name}.")
    return jax.numpy.dtype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# A folder of ours.


def _load_saved(folder: Path, config: ModelConfig, parts: tuple[str, ...], dtype: Any) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    expected = weights.param_shapes(config, parts)
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            tree = checkpointer.metadata((folder / "params").absolute()).item_metadata
            found = weights.flatten(tree.tree if hasattr(tree, "tree") else tree)
        except Exception as error:
            raise CheckpointError(f"{folder / 'params'} is not a checkpoint that Orbax can read: {error}") from error
        known = weights.param_shapes(config, weights.PARTS)
        report = weights.mismatch_report(expected, {path: tuple(m.shape) for path, m in found.items()}, known)
        if report:
            raise CheckpointError(f"{folder} does not hold {config.model_type} params of its own config:\n{report}")
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = weights.unflatten(
            {
                path: jax.ShapeDtypeStruct(shape, dtype or found[path].dtype, sharding=sharding)
                for path, shape in expected.items()
            }
        )
        return checkpointer.restore(
            (folder / "params").absolute(),
            args=ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )


# ---------------------------------------------------------------------------------------------------------------------
# A folder in Hugging Face's layout.


def _shards(folder: Path) -> dict[str, Path] | Path:
    """The file of each tensor as the index says, or the one file that holds all."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map from tensor names to files.")
        for file in set(weight_map.values()):
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{index} points to {file!r}, which is not a file name inside its folder.")
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run any code when they are opened; "
            f"save them as safetensors first."
        )
    raise FileNotFoundError(f"{folder} has no weights: expected model.safetensors or model.safetensors.index.json.")


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}.") from error


def _load_safetensors(
    folder: Path, config: ModelConfig, parts: tuple[str, ...], dtype: Any, progress: bool
) -> dict[str, Any]:
    known = weights.tensors(config)
    wanted = {name: tensor for name, tensor in known.items() if tensor.part in parts}
    located = _shards(folder)
    with ExitStack() as stack:
        if isinstance(located, Path):
            whole = stack.enter_context(_open(located))
            files = dict[str, Any].fromkeys(whole.keys(), whole)
        else:
            needed = {file: None for name, file in located.items() if name in wanted}
            opened = {file: stack.enter_context(_open(file)) for file in needed}
            files: dict[str, Any] = {name: opened.get(file) for name, file in located.items()}
        slices = {name: file.get_slice(name) for name, file in files.items() if name in wanted and file is not None}
        _check_found(folder, wanted, known, files.keys(), slices, dtype)
        bar = tqdm(desc="loading", unit=" tensors", total=len(wanted), disable=not progress)

        def read(name: str) -> np.ndarray:
            bar.update()
            return files[name].get_tensor(name)

        with bar:
            pairs = weights.to_params(config, parts, read, dtype)
            return weights.unflatten({path: jax.numpy.asarray(array) for path, array in pairs})


def _check_found(
    folder: Path,
    wanted: dict[str, weights.Tensor],
    known: Iterable[str],
    names: Iterable[str],
    slices: dict[str, Any],
    dtype: Any,
) -> None:
    """Everything that is wrong with the files, found before a value is read and told in one error."""
    found = {name: tuple(slices[name].get_shape()) if name in slices else () for name in names}
    report = [weights.mismatch_report({name: tensor.shape for name, tensor in wanted.items()}, found, known)]
    dtypes: dict[str, set[str]] = {}
    for name, piece in slices.items():
        kind = piece.get_dtype()
        dtypes.setdefault(wanted[name].path, set()).add(kind)
        if kind not in DTYPES:
            report.append(f" ~ {name}: expected dtype {', '.join(DTYPES)}, found {kind}")
    if dtype is None:
        report += [
            f" ~ {path}: its layers have the dtypes {', '.join(sorted(kinds))}; pass dtype= to choose one"
            for path, kinds in dtypes.items()
            if len(kinds) > 1
        ]
    text = "\n".join(line for line in report if line)
    if text:
        raise CheckpointError(
            f"{folder} does not hold what its config asks for (- missing, + unexpected, ~ other):\n{text}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# The hub.


def _download(repo_id: str, parts: Iterable[str]) -> Path:
    """Fetches the files that `parts` need, through huggingface_hub's cache, and returns their folder."""
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
            get("processor_config.json")
        if get_if_there("model.safetensors.index.json"):
            config = read_hf_config(folder)
            asked = weights.check_parts(config, parts)
            located = _shards(folder)
            wanted = {name for name, tensor in weights.tensors(config).items() if tensor.part in asked}
            assert isinstance(located, dict)
            for shard in sorted({file.name for name, file in located.items() if name in wanted}):
                get(shard)
        else:
            get("model.safetensors")
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"There is no folder {repo_id}, and the hub did not give it ({reason}). "
            f"Check the name and the connection, or pass the path of a downloaded folder."
        ) from error
    return folder
