"""The examples of docs/fine-tuning.md run, and what they export is loaded and answers."""

import numpy as np

import multipatch_jax as mp
from tests.helpers.colours import example, make_colour_model
from tests.helpers.project import run_examples


def test_the_guides_examples_run(tmp_path, monkeypatch):
    """With a small model, few steps and short rows."""
    folder = make_colour_model(tmp_path / "model").folder
    monkeypatch.chdir(tmp_path)
    examples = [(picture, "?", colour) for _, picture, colour in map(example, range(4))]
    small = {"length=1200, num_tiles=17": "length=40, num_tiles=1", "batch_size=8": "batch_size=2"}
    changes = {"HuggingFaceTB/SmolVLM-256M-Instruct": folder} | small
    names = run_examples("docs/fine-tuning.md", {"examples": examples, "num_steps": 3, "folder": folder}, changes)
    assert np.isfinite(names["metrics"]["loss"])
    assert int(names["state"].step) == 1
    _, tuned = mp.from_pretrained("tuned", parts="all")
    kernel = "text_model/layers/mlp/up_proj/kernel"
    before = mp.params.flatten(mp.from_pretrained(folder, parts="all")[1])
    assert np.any(mp.params.flatten(tuned)[kernel] != before[kernel])
    total, count = names["loss_fn"](tuned, names["batch_at"](0))
    assert np.isfinite(total / count)
