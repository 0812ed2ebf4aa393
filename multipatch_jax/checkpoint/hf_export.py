"""Write a folder in Hugging Face's layout, alone or on the base of another folder.

Of a base's JSON files, the keys that we read are written from the config, and the others are kept (text generation,
bookkeeping).
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from multipatch_jax.checkpoint import hf_folder
from multipatch_jax.checkpoint.finite import check_numbers
from multipatch_jax.checkpoint.hf_config import CONFIG, PREPROCESSOR, PROCESSOR, config_to_hf
from multipatch_jax.checkpoint.hf_folder import WEIGHTS
from multipatch_jax.checkpoint.hf_keys import KEYS, MARK, REFUSED
from multipatch_jax.checkpoint.saved_folder import CONFIG_FILE, DIGESTS, is_saved, load_saved, saved_parts
from multipatch_jax.checkpoint.side_files import files_of, holds_weights, require_base
from multipatch_jax.config import ModelConfig
from multipatch_jax.files import read_json, write_json
from multipatch_jax.params import Params, from_params, tensors, unflatten

JSON = dict[str, Any]


def write(folder: Path, config: ModelConfig, params: Params, base: Path | None = None, dtype: Any = None) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors into an empty folder.

    Args:
      base: a Hugging Face or saved folder of the same model. Tensors that `params` lack are taken from it, and its
        files are copied, other than weights. Of a saved folder, only the parts that it holds are taken.
      dtype: dtype of the tensors; None keeps that of the params.

    Raises:
      ValueError: the config cannot be expressed, or `base` is of another kind of model.
      CheckpointError: `base` does not hold the tensors that are taken from it, or a number is infinite in `dtype`.
      FileNotFoundError: `base` is no folder or has no weights.
    """
    from safetensors.numpy import save_file

    top, image = config_to_hf(config)
    arrays = dict(from_params(config, params))
    files: dict[str, Path] = {}
    if base is not None:
        files = dict(files_of(require_base(base)))
        _check_base(base, files, config)
        arrays = _taken(base, config, arrays.keys()) | arrays
    if dtype is not None:
        for name, array in arrays.items():
            check_numbers(name, array, dtype)
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})

    for name, place in files.items():
        if not holds_weights(name) and name not in (CONFIG, PREPROCESSOR, PROCESSOR, CONFIG_FILE, DIGESTS):
            shutil.copyfile(place, folder / name)
    dtypes = {array.dtype.name for array in arrays.values()}
    write_json(folder / CONFIG, _config(_read(files, CONFIG), top, dtypes.pop() if len(dtypes) == 1 else None))
    processor = _read(files, PROCESSOR)
    nested = processor.get("image_processor")
    nested = nested if isinstance(nested, dict) else {}
    tokens = config.tiling.tokens_per_tile
    write_json(folder / PREPROCESSOR, _preprocessor(_read(files, PREPROCESSOR) or nested, image, tokens))
    if PROCESSOR in files:
        if nested:
            processor["image_processor"] = _preprocessor(nested, image, tokens)
        write_json(folder / PROCESSOR, processor | {"image_seq_len": tokens})


def _read(files: dict[str, Path], name: str) -> JSON:
    return read_json(files[name]) if name in files else {}


def _check_base(base: Path, files: dict[str, Path], config: ModelConfig) -> None:
    if is_saved(base):
        return
    found = _read(files, CONFIG)
    if found.get("model_type") not in ("idefics3", "smolvlm"):
        raise ValueError(
            f"base must be a Hugging Face or saved folder of the same model, whose {CONFIG} has model_type idefics3 or "
            f"smolvlm, got {base} with {found.get('model_type', found.get('type'))!s:.50}."
        )
    if config.text is None and MARK not in found:
        raise ValueError(
            f"config.text is None, so the language model of {base} would be left out: give the base's config.text, or "
            f"no base."
        )


def _taken(base: Path, config: ModelConfig, given: Any) -> dict[str, np.ndarray]:
    """Return the tensors of `base` that are not among those given."""
    absent = {name: tensor for name, tensor in tensors(config).items() if name not in given}
    parts = tuple(dict.fromkeys(tensor.part for tensor in absent.values()))
    load = hf_folder.load
    if is_saved(base):
        load, held = load_saved, saved_parts(base)  # which asks Orbax
        parts = tuple(part for part in parts if part in held)
    if not parts:
        return {}
    found = dict(from_params(config, unflatten(dict(load(base, config, parts)))))
    return {name: array for name, array in found.items() if name in absent}


def _merge(base: Any, ours: JSON, section: str) -> JSON:
    """Return our JSON object with the keys of the base's that we do not read, and that do not change the weights."""
    read = {*KEYS[section].read, *KEYS[section].fixed, *REFUSED}
    return ours | {key: value for key, value in base.items() if key not in read} if isinstance(base, dict) else ours


def _config(base: JSON, ours: JSON, dtype: str | None) -> JSON:
    """Return config.json.

    Args:
      dtype: of all tensors; None if they have several.
    """
    top = _merge(base, ours, CONFIG)
    for name in ("vision_config", "text_config"):
        top[name] = _merge(base.get(name), ours[name], f"{CONFIG}: {name}")
    text, theirs = top["text_config"], base.get("text_config")
    rope = theirs.get("rope_parameters") if isinstance(theirs, dict) else None
    if isinstance(rope, dict) and "rope_theta" in text:  # where transformers 5 has it
        scaling = text["rope_scaling"] or {"rope_type": "default"}
        text["rope_parameters"] = scaling | {"rope_theta": text["rope_theta"]}
    # Copies of the text_config's sizes that trainers write.
    top |= {key: text[key] for key in KEYS[CONFIG].ignored if key in top and key in text}
    for section in (top, top["vision_config"], text):
        for key in section.keys() & {"dtype", "torch_dtype"}:
            section[key] = dtype
    return top


def _preprocessor(base: JSON, ours: JSON, tokens: int) -> JSON:
    merged = _merge(base, ours, PREPROCESSOR)
    return merged | ({"image_seq_len": tokens} if "image_seq_len" in merged else {})
