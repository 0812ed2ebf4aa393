"""Find the folder of a model by its name: one on the disk, or a small model that comes with the package."""

from pathlib import Path

from multipatch_jax.checkpoint.hf_config import CONFIG
from multipatch_jax.files import require_path

MODEL = "a model's folder or its hub id"
NAMES = {"multipatch/reader": "reader"}  # name -> folder in multipatch_jax/models


def local_folder(name_or_path: str | Path) -> Path | None:
    """Return the folder of a path, or of a model that comes with the package; None for any other name.

    A folder of the user's goes before a model of the package with the same name.

    Raises:
      ValueError: `name_or_path` is no path.
      FileNotFoundError: the model should have come with the package, and its files are not there.
    """
    folder = require_path("name_or_path", name_or_path, MODEL)
    if folder.is_dir():
        return folder
    if str(name_or_path) not in NAMES:
        return None
    shipped = Path(__file__).parents[1] / "models" / NAMES[str(name_or_path)]
    if not (shipped / CONFIG).is_file():
        raise FileNotFoundError(
            f"The model {name_or_path} comes with the package, and its folder {shipped} is missing: install "
            f"multipatch_jax again, from a checkout with all of its files or from a wheel."
        )
    return shipped
