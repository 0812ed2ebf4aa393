"""Read which ids end an answer from a checkpoint's files."""

from pathlib import Path
from typing import Any

from multipatch_jax.arguments import LARGEST_INT
from multipatch_jax.files import read_json
from multipatch_jax.text import Processor


def read_eos_ids(folder: Path, processor: Processor) -> tuple[int, ...]:
    """Return the ids that end an answer, as the reference finds them.

    The first file that names any decides: generation_config.json, config.json, config.json's `text_config`. If none
    does, the tokenizer's own `eos_token` counts.

    Args:
      folder: a model's, in Hugging Face's layout or of `save_pretrained`.
      processor: the one of that folder.

    Returns:
      The ids, each once. They are empty if the checkpoint names none: then only the length ends an answer.

    Raises:
      ValueError: a file is damaged, or names something else than ids.
    """
    for name, keys in (("generation_config.json", ()), ("config.json", ()), ("config.json", ("text_config",))):
        path = folder / name
        content = read_json(path) if path.is_file() else {}
        for key in keys:
            content = content.get(key) or {}
            if not isinstance(content, dict):
                raise ValueError(f"{path}: {key} must be an object, got {content!r:.60}.")
        found = content.get("eos_token_id")
        if found is not None:
            return _ids(path, found)
    return eos_ids_of_tokenizer(processor)


def eos_ids_of_tokenizer(processor: Processor) -> tuple[int, ...]:
    """Return the id of the tokenizer's own `eos_token`, or nothing if it has none."""
    token = processor.special_tokens.get("eos_token")
    token_id = None if token is None else processor.tokenizer.token_to_id(token)
    return () if token_id is None else (token_id,)


def _ids(path: Path, found: Any) -> tuple[int, ...]:
    """Return one id or a list of them as a tuple, or raise a ValueError that names the file."""
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= LARGEST_INT for one in ids):
        raise ValueError(f"{path}: eos_token_id must be an id from 0, or a list of them, got {found!r:.60}.")
    return tuple(dict.fromkeys(ids))
