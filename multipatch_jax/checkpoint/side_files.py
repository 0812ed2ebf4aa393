"""The files of a model's folder beside its config and weights: tokenizer, chat templates, settings of processors."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
WEIGHT_SUFFIXES = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data"),
    *(".msgpack", ".h5", ".ot", ".npz", ".pkl", ".tflite"),
}


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, place) of the files in a folder, without its sub-folders.

    The files of a hub's snapshot are links into the cache's own `blobs`, which are followed. A link that leads to
    another place outside the folder is left out, with a warning.
    """
    root = folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for file in sorted(folder.iterdir()):
        if file.is_file():
            place = file.resolve()
            if place.is_relative_to(root) or place.is_relative_to(blobs):
                yield file.name, place
            else:
                warnings.warn(f"{file} is a link to a place outside its folder, so it is not copied.", stacklevel=3)


def holds_weights(name: str) -> bool:
    """Return whether the name is that of a file of weights in any library's format, or of the index of such files."""
    return bool(WEIGHT_SUFFIXES & set(Path(name).suffixes))


def copy_side_files(base: Path, folder: Path) -> None:
    """Copy those of `SIDE_FILES` that `base` has.

    Raises:
      FileNotFoundError: `base` is no folder.
    """
    for name, place in files_of(require_base(base)):
        if name in SIDE_FILES:
            shutil.copyfile(place, folder / name)


def require_base(base: Path) -> Path:
    """Return `base`, or raise a FileNotFoundError if it is no folder."""
    if not base.is_dir():
        raise FileNotFoundError(f"base must be a model's folder on this machine, got {base}, where there is none.")
    return base
