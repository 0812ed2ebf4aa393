"""Read and write the weights of a folder in Hugging Face's layout: one safetensors file, or shards with an index.

Reading is strict: everything that is missing, unexpected, or of another shape or dtype is listed in one error before
any tensor is read.
"""

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tqdm import tqdm

from multipatch_jax.checkpoint.hf_config import config_to_hf
from multipatch_jax.checkpoint.hf_names import locate
from multipatch_jax.config import ModelConfig
from multipatch_jax.files import read_json, write_json
from multipatch_jax.params import Tensor, check_parts, from_params, mismatch_report, tensors, to_params, unflatten

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}


class CheckpointError(ValueError):
    """A checkpoint is damaged or incomplete, or does not fit the config or training run; nothing of it was loaded."""


class _Stored(NamedTuple):
    """Where one tensor lies: its file, safetensors dtype ("F32"), shape, and offset in bytes from the file's start."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """Return the tensor as a read-only memory map of its own.

        The map's pages are released with the array, so reading tensor after tensor does not fill the memory.
        """
        if 0 in self.shape:  # an empty range cannot be mapped
            return np.empty(self.shape, DTYPES[self.dtype])
        return np.memmap(self.file, DTYPES[self.dtype], "r", self.offset, self.shape)


def _index(folder: Path) -> dict[str, Path] | None:
    """Return {stored tensor name: its file} from the index, or None if the folder has one file and no index.

    Raises:
      CheckpointError: the index has no weight map or points outside its folder, or all weights are pickled.
      FileNotFoundError: the folder has no weights.
      ValueError: the index is not valid JSON.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{folder / INDEX} has no weight_map from tensor names to files.")
        for file in set(map(str, weight_map.values())):
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"{folder / INDEX} points to {file!r}, which is no safetensors file in its folder."
                )
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / WEIGHTS).is_file():
        return None
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles)}), which can run any code when they are opened; "
            f"save them as safetensors first."
        )
    raise FileNotFoundError(f"{folder} has no weights: expected {WEIGHTS} or {INDEX}.")


def _wanted(config: ModelConfig, parts: Iterable[str]) -> dict[str, Tensor]:
    parts = check_parts(config, parts)
    return {name: tensor for name, tensor in tensors(config).items() if tensor.part in parts}


def needed_shards(folder: Path, config: ModelConfig, parts: Iterable[str]) -> list[Path]:
    """Return the shards that hold a tensor of `parts`, according to the index; none if the folder has no index."""
    index = _index(folder) or {}
    places, wanted = locate(index), _wanted(config, parts)
    return sorted({index[stored] for name in places.keys() & wanted.keys() for stored in places[name]})


def _header(file: Path) -> dict[str, _Stored]:
    """Return {stored name: place} for every tensor of a safetensors file, from its header alone.

    The safetensors library opens the file first, and checks that header and file size agree.

    Raises:
      CheckpointError: the file is missing, truncated or damaged, or names a tensor twice.
    """
    from safetensors import SafetensorError, safe_open

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise CheckpointError(f"{file} names a tensor twice.")
        return dict(pairs)

    try:
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(size), object_pairs_hook=unique)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}.") from error
    entries.pop("__metadata__", None)
    return {
        name: _Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in entries.items()
    }


def load(
    folder: Path, config: ModelConfig, parts: Iterable[str], dtype: Any = None, progress: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Return an iterator over (path, array) of each parameter in `parts`.

    All names, shapes and dtypes are checked by this call, before the iterator reads the first tensor. The iterator
    warns of each tensor that holds NaN.

    Args:
      parts: some of `mp.params.PARTS`.
      dtype: dtype of the arrays; None keeps the file's.
      progress: whether to show a bar that counts tensors.

    Raises:
      FileNotFoundError: the folder has no weights.
      CheckpointError: a file is damaged, or the files do not hold what `config` asks for.
      ValueError: `parts` are unknown, or the index is not valid JSON.
    """
    wanted, index = _wanted(config, parts), _index(folder)
    files = [folder / WEIGHTS] if index is None else needed_shards(folder, config, parts)
    stored = {name: tensor for file in files for name, tensor in _header(file).items()}
    places = locate(index or stored)
    if config.text is None:  # only the tower and connector are wanted (SmolVLA)
        places = {k: v for k, v in places.items() if not k.startswith(("model.text_model.", "lm_head."))}
    pieces = {name: [stored[n] for n in places[name] if n in stored] for name in wanted if name in places}
    _check(folder, config, wanted, places, pieces, dtype)
    bar = tqdm(desc="loading", unit=" tensors", total=len(wanted), disable=not progress)

    def read(name: str) -> np.ndarray:
        bar.update()
        arrays = [piece.read() for piece in pieces[name]]
        value = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if np.isnan(value).any():
            warnings.warn(f"{pieces[name][0].file}: {places[name][0]} holds NaN.", stacklevel=2)
        return value

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        with bar:
            yield from to_params(config, check_parts(config, parts), read, dtype)

    return arrays()


def _check(
    folder: Path,
    config: ModelConfig,
    wanted: dict[str, Tensor],
    places: dict[str, list[str]],
    pieces: dict[str, list[_Stored]],
    dtype: Any,
) -> None:
    """Raise one CheckpointError that lists everything wrong with the files.

    Args:
      wanted: today's tensor name -> the tensor that the config asks for.
      places: today's tensor name -> the stored names that make it up (see `locate`).
      pieces: today's name of each wanted tensor -> its stored tensors.
      dtype: the dtype asked for; with None, all layers of one parameter must be stored in the same dtype.
    """
    found: dict[str, tuple[int, ...]] = dict.fromkeys(places, ())
    dtypes: dict[str, set[str]] = {}
    report = []
    for name, parts in pieces.items():
        shapes = [part.shape for part in parts]
        if not shapes:
            del found[name]  # the index lists it, its file lacks it
        elif len(shapes) == 1:
            found[name] = shapes[0]
        else:
            found[name] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        kinds = {part.dtype for part in parts}
        dtypes.setdefault(wanted[name].path, set()).update(kinds)
        if kinds - DTYPES.keys():
            report.append(f" ~ {name}: expected dtype {', '.join(DTYPES)}, found {', '.join(sorted(kinds))}")
    if dtype is None:
        report += [
            f" ~ {path}: its layers have the dtypes {', '.join(sorted(kinds))}; pass dtype= to choose one"
            for path, kinds in dtypes.items()
            if len(kinds) > 1
        ]
    shapes = mismatch_report({name: t.shape for name, t in wanted.items()}, found, tensors(config))
    text = "\n".join(line for line in (shapes, *report) if line)
    if text:
        raise CheckpointError(
            f"{folder} does not hold what its config asks for "
            f"(- missing, + unexpected, ~ other shape or dtype):\n{text}"
        )


def write(folder: Path, config: ModelConfig, params: dict[str, Any], base: Path | None = None) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors into an empty folder.

    Args:
      base: a Hugging Face folder of the same model. Tensors that `params` lack are taken from it, and its files other
        than safetensors and their index are copied: tokenizer, generation settings, and also its config.json and
        preprocessor_config.json, which are then not written from `config`.
    """
    from safetensors.numpy import save_file

    arrays = dict(from_params(config, params))
    if base is not None:
        absent = {name: tensor for name, tensor in tensors(config).items() if name not in arrays}
        parts = {tensor.part for tensor in absent.values()}
        if parts:
            flat = load(base, config, parts)
            rest = dict(from_params(config, unflatten(dict(flat))))
            arrays |= {name: rest[name] for name in absent}
        for file in base.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name != INDEX:
                shutil.copyfile(file, folder / file.name)
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in zip(("config.json", "preprocessor_config.json"), config_to_hf(config), strict=True):
        if not (folder / name).exists():
            write_json(folder / name, content)
