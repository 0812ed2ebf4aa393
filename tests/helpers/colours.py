"""A toy task: say the colour of a picture. A random model learns it in a minute, as pictures and answers are simple."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.models import TINY_SMOLVLM, Model, make_model
from tests.helpers.tokenizer import save_tokenizer

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
# A picture is one tile.
CONFIG = dataclasses.replace(TINY_SMOLVLM, tiling=dataclasses.replace(TINY_SMOLVLM.tiling, do_image_splitting=False))
END = 49279  # the id of <end_of_utterance>, which ends an answer


def make_colour_model(folder: Path) -> Model:
    """A random model with its tokenizer, as the hub has one."""
    folder.mkdir()
    model = make_model(CONFIG, folder)
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, END]}))
    return model


def example(seed: int) -> tuple[list[dict[str, Any]], np.ndarray, str]:
    """A chat that asks for the colour and answers, the noisy picture, and the colour."""
    chance = np.random.default_rng(seed)
    colour = list(COLOURS)[chance.integers(len(COLOURS))]
    picture = np.clip(np.array(COLOURS[colour]) + chance.normal(0, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    return [question, {"role": "assistant", "content": [{"type": "text", "text": colour}]}], picture, colour
