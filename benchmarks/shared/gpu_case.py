"""What `benchmarks.gpu` runs: the sizes of its work, and a folder with a checkpoint and the inputs of all systems."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from benchmarks.shared.whole_checkpoint import make_whole_checkpoint

BATCHES = (1, 8, 64)  # chats at a time


@dataclasses.dataclass(frozen=True)
class Case:
    """The sizes of the work.

    Attributes:
      layers: of the tower and the language model; None is all.
      tiles: encoded at once.
      photo: height and width in pixels.
      calls: of a turn of the towers and the images.
      matmul: rows and columns of the ceiling's matrices.
      prompt: tokens of each chat.
      written: tokens of each answer.
    """

    layers: int | None = None
    tiles: int = 17
    photo: tuple[int, int] = (3000, 4000)
    calls: int = 20
    matmul: int = 8192
    prompt: int = 900
    written: int = 33


SHORT = Case(layers=1, tiles=2, photo=(400, 600), calls=2, matmul=256, prompt=40, written=4)


def make_case(folder: Path, case: Case) -> None:
    """Writes a checkpoint of SmolVLM-256M's shapes with random weights, and the inputs."""
    make_whole_checkpoint(folder, case.layers)
    random = np.random.default_rng(0)
    np.save(folder / "tiles.npy", random.integers(0, 256, (case.tiles, 512, 512, 3), np.uint8))
    np.save(folder / "photo.npy", random.integers(0, 256, (*case.photo, 3), np.uint8))
    (folder / "case.json").write_text(json.dumps(dataclasses.asdict(case)))


def case_of(folder: Path) -> Case:
    """The sizes that a folder was made for."""
    return Case(**json.loads((folder / "case.json").read_text()))


def torch_device() -> str:
    """Where torch's systems run: "cuda", or "cpu" where a short case is tried without a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait_for_torch() -> None:
    """Waits until a GPU has done what torch asked of it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
