"""docs/prompts.md: its examples run, one after the other, and its tables are true."""

import re

import numpy as np
import pytest
from PIL import Image

import multipatch_jax as mp
from tests.helpers.project import run_examples, section


@pytest.fixture(scope="module")
def names(model, photos, tmp_path_factory):
    """The variables of all examples, run in order with a small model; `printed` is what they printed."""
    folder = tmp_path_factory.mktemp("guide")
    Image.fromarray(photos["cat"]).save(folder / "photo.jpg")
    Image.fromarray(photos["coffee"]).save(folder / "later.jpg")
    names = {"video": np.random.default_rng(0).integers(0, 256, (240, 48, 64, 3), np.uint8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_examples("docs/prompts.md", names, {"HuggingFaceTB/SmolVLM-256M-Instruct": model.folder})
    return names | {"folder": folder}


def test_the_examples_run(names):
    generator = names["generator"]
    assert [answer.num_encoded for answer in names["answers"]] == [0, 1, 0]
    assert all(len(answer.logprobs or []) == len(answer.ids) for answer in [names["short"]])
    assert names["drawn"][0].ids != names["drawn"][1].ids
    assert (len(names["session"].chat), len(names["other"].chat)) == (4, 2)
    assert len(names["numbers"]) == 2
    assert (names["folder"] / "looked-at.png").stat().st_size > 1000
    assert generator.processor.render(names["question"]).startswith("<|im_start|>User:<image>What is this?<end_of_")
    assert names["inputs"]["inputs_embeds"].shape[0] == 2
    assert names["answer"].num_prompt_tokens > len(names["plan"].indices) * generator.config.tiling.tokens_per_tile


def test_the_table_has_all_settings():
    rows = re.findall(r"^\| (`.+?`.*?) \|", section("docs/prompts.md", "Settings"), re.M)
    found = set(re.findall(r"`(\w+)`", " ".join(rows))) - {"logprobs"}
    assert found == set(mp.generate.SETTINGS)
    for name, value in re.findall(r"`(\w+)` \((\d+)\)", " ".join(rows)):
        assert getattr(mp.generate.GenerationSettings(), name) == int(value)
