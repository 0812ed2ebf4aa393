"""Read a checkpoint's tokenizer and its settings, from a folder in HF's layout or from the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from multipatch_jax.checkpoint import fetch, fetch_if_there
from multipatch_jax.files import read_json, refuse_pointer
from multipatch_jax.text.template_file import SETTINGS, TEMPLATES

TOKENIZER = "tokenizer.json"
SIDES = ("left", "right")


class Settings(NamedTuple):
    """What tokenizer_config.json says; the fields of `Processor` with these names."""

    special_tokens: dict[str, str]
    padding_side: str


def download(repo_id: str, **hub: Any) -> Path:
    """Fetch the tokenizer and the files that may hold the chat template; return their folder."""
    folder = fetch(repo_id, TOKENIZER, **hub).parent
    for name in TEMPLATES:
        fetch_if_there(repo_id, name, **{**hub, "revision": folder.name})  # the cache names a folder after its commit
    return folder


def read_tokenizer(folder: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a folder, which neither pads nor cuts.

    Raises:
      FileNotFoundError: the folder has no tokenizer.json.
      ValueError: the file is damaged.
    """
    from tokenizers import Tokenizer

    if not (folder / TOKENIZER).is_file():
        raise FileNotFoundError(f"{folder} has no {TOKENIZER}, which is needed to tokenise texts.")
    refuse_pointer(folder / TOKENIZER)
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{folder / TOKENIZER} is not a tokenizer: {error}.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_settings(folder: Path) -> Settings:
    """Read tokenizer_config.json; a folder without it has no special tokens.

    Raises:
      ValueError: the file is damaged, or has a value of another kind.
    """
    path = folder / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    special = {}
    for key, value in settings.items():
        # A token is stored as a string or as an object; keys such as "add_bos_token" are switches.
        if not key.endswith("_token") or value is None or isinstance(value, bool):
            continue
        token = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(token, str):
            raise ValueError(f'{path}: {key} must be a text, or an object with a text "content", got {value!r:.60}.')
        special[key] = token
    side = settings.get("padding_side", "right")
    if side not in SIDES:
        raise ValueError(f"{path}: padding_side must be one of {SIDES}, got {side!r:.60}.")
    return Settings(special, side)
