"""Read the weights of a folder in Hugging Face's layout: one safetensors file, or shards with an index.

Reading is strict: everything that is missing, unexpected, or of another shape or dtype is listed in one error before
any tensor is read.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from multipatch_jax.checkpoint.error import CheckpointError
from multipatch_jax.checkpoint.finite import check_numbers
from multipatch_jax.checkpoint.hf_keys import short
from multipatch_jax.checkpoint.hf_names import locate
from multipatch_jax.checkpoint.safetensors_file import DTYPES, Stored, read_header
from multipatch_jax.config import ModelConfig
from multipatch_jax.files import read_json
from multipatch_jax.params import PARTS, Tensor, check_parts, count_tensors, mismatch_report, tensors, to_params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDINGS, HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"
MOST_LINES = 40
FEW = 10_000  # tensors, so few that they may be listed whatever the files hold; the largest model has about 1,000


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
                    f"{folder / INDEX} points to {short(file)}, which is no safetensors file in its folder."
                )
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / WEIGHTS).is_file():
        return None
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles[:5])}), which can run any code when they are "
            f"opened; save them as safetensors first."
        )
    raise FileNotFoundError(f"{folder} has no weights: expected {WEIGHTS} or {INDEX}.")


def _wanted(folder: Path, config: ModelConfig, parts: Iterable[str], names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of `parts` by today's names.

    Args:
      names: of the stored tensors. A config that asks for many more is refused before they are listed: a few bytes of
        JSON can say num_hidden_layers=10000000.
    """
    parts, number = check_parts(config, parts), count_tensors(config, PARTS)
    if number > max(len(names), FEW):
        raise CheckpointError(f"{folder} holds {len(names)} tensors, but its config asks for {number}.")
    return {name: tensor for name, tensor in tensors(config).items() if tensor.part in parts}


def _is_tied(config: ModelConfig) -> bool:
    return config.text is not None and config.text.tie_word_embeddings and config.embedding_size is None


def _places(config: ModelConfig, names: Iterable[str]) -> dict[str, list[str]]:
    """Return {today's name: stored names} as `locate` does, for a model with this language model or none.

    Of a language model whose head is tied to the embeddings, a file may hold both, the embeddings, or only the head.
    """
    places = locate(names)
    if config.text is None:  # only the tower and connector are wanted (SmolVLA)
        places = {k: v for k, v in places.items() if not k.startswith(("model.text_model.", "lm_head."))}
    if _is_tied(config) and HEAD in places and EMBEDDINGS not in places:
        places[EMBEDDINGS] = places.pop(HEAD)
    return places


def needed_shards(folder: Path, config: ModelConfig, parts: Iterable[str]) -> list[Path]:
    """Return the shards that hold a tensor of `parts`, according to the index; none if the folder has no index."""
    return _shards(folder, _index(folder) or {}, config, parts)


def _shards(folder: Path, index: dict[str, Path], config: ModelConfig, parts: Iterable[str]) -> list[Path]:
    places, wanted = _places(config, index), set(_wanted(folder, config, parts, index))
    if "text" in check_parts(config, parts):
        wanted.add(HEAD)  # a tied head is compared with the embeddings
    return sorted({index[stored] for name in places.keys() & wanted for stored in places[name]})


def load(
    folder: Path, config: ModelConfig, parts: Iterable[str], dtype: Any = None, progress: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Return an iterator over (path, array) of each parameter in `parts`.

    All names, shapes and dtypes are checked by this call, before the iterator reads the first tensor. The iterator
    warns of each tensor that holds NaN or Inf.

    Args:
      parts: some of `mp.params.PARTS`.
      dtype: dtype of the arrays; None keeps the file's.
      progress: whether to show a bar that counts tensors.

    Raises:
      FileNotFoundError: the folder has no weights.
      CheckpointError: a file is damaged, the files do not hold what `config` asks for, or (by the iterator) a tensor
        holds a number that is infinite in `dtype`.
      ValueError: `parts` are unknown, or the index is not valid JSON.
    """
    index, parts = _index(folder), check_parts(config, parts)
    files = [folder / WEIGHTS] if index is None else _shards(folder, index, config, parts)
    stored = {name: tensor for file in files for name, tensor in read_header(file).items()}
    wanted, places = _wanted(folder, config, parts, index or stored), _places(config, index or stored)
    head = [stored[n] for n in places.pop(HEAD, []) if n in stored] if _is_tied(config) else []
    pieces = {name: [stored[n] for n in places[name] if n in stored] for name in wanted if name in places}
    _check(folder, config, wanted, places, pieces, dtype)
    if head and "text" in parts and not _equal(head, pieces[EMBEDDINGS]):
        raise CheckpointError(
            f"{folder}: config.json ties {HEAD} to {EMBEDDINGS}, but the weights hold both and they differ. If the "
            f"head is meant, set tie_word_embeddings to false in config.json."
        )
    bar = tqdm(desc="loading", unit=" tensors", total=len(wanted), disable=not progress)

    def read(name: str) -> np.ndarray:
        bar.update()
        arrays = [piece.read() for piece in pieces[name]]
        for piece, array in zip(pieces[name], arrays, strict=True):
            check_numbers(f"{piece.file}: {piece.name}", array, dtype)
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate([array if dtype is None else array.astype(dtype) for array in arrays])

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        with bar:
            yield from to_params(config, parts, read, dtype)

    return arrays()


def _equal(first: list[Stored], second: list[Stored]) -> bool:
    """Return whether two tensors, each stored in pieces of rows, hold the same numbers."""
    if {piece.dtype for piece in (*first, *second)} - DTYPES.keys():
        return False
    a, b = (np.concatenate([p.read() for p in t]) if len(t) > 1 else t[0].read() for t in (first, second))
    if a.shape != b.shape:
        return False
    parts = (slice(start, start + 1024) for start in range(0, len(a), 1024))
    return all(np.array_equal(a[rows].astype(np.float32), b[rows].astype(np.float32), equal_nan=True) for rows in parts)


def _check(
    folder: Path,
    config: ModelConfig,
    wanted: dict[str, Tensor],
    places: dict[str, list[str]],
    pieces: dict[str, list[Stored]],
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
        elif len({shape[1:] for shape in shapes}) == 1 and all(shapes):
            found[name] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        else:
            report.append(f" ~ {name}: stored in pieces that do not fit together, {', '.join(map(str, shapes))}")
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
    if len(report) > MOST_LINES:
        report[MOST_LINES:] = [f" ... and {len(report) - MOST_LINES} more"]
    shapes = mismatch_report({name: t.shape for name, t in wanted.items()}, found, tensors(config))
    text = "\n".join(line for line in (shapes, *report) if line)
    if text:
        raise CheckpointError(
            f"{folder} does not hold what its config asks for "
            f"(- missing, + unexpected, ~ other shape or dtype):\n{text}"
        )
