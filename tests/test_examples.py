"""The Python of README.md and of the pages of docs/ runs, with a small model.

tests/text/test_guide.py runs docs/prompts.md, and tests/test_fine_tuning.py docs/fine-tuning.md.
"""

import re
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

import multipatch_jax as mp
from tests.helpers.models import TINY_SMOLVLM, make_model
from tests.helpers.project import PAGES, ROOT, examples, run_examples
from tests.helpers.tokenizer import save_tokenizer

NAME = "HuggingFaceTB/SmolVLM-256M-Instruct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with its tokenizer, as the hub has one."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    make_model(TINY_SMOLVLM, folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def run(folder, photo, tmp_path, monkeypatch):
    """A function that runs a page where its photographs are, and returns the page's variables."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save("photo.jpg")
    Image.fromarray(data.coffee()).save("later.jpg")
    for name in ("photo.jpg", "later.jpg"):
        shutil.copy(name, tmp_path / "photos")
    (tmp_path / "photos" / "no photograph.txt").write_text("")

    def run(page: str, changes: dict[str, Any] | None = None, **names: Any) -> dict[str, Any]:
        return run_examples(page, names, {NAME: folder} | (changes or {}))

    return run


def test_the_readmes_examples_run(run, photo, folder):
    pictures = [np.full((16, 64, 3), shade, np.uint8) for shade in (60, 120, 180)]  # each becomes five tiles
    chats = [
        [
            {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "grey"}]},
        ]
        for picture in pictures
    ]
    given = {"array": photo, "paths": ["photo.jpg"], "chats": chats, "processor": mp.Processor.from_pretrained(folder)}
    small = {
        "length=1200, num_tiles=17": "length=90, num_tiles=5",
        "batch_size=8": "batch_size=2",
        "range(1000)": "range(2)",
    }
    names = run("README.md", small, **given)
    assert names["answer"].text
    assert names["tokens"].shape == (13 * 4, 48)
    assert int(names["state"].step) == 2
    assert "lora" not in mp.from_pretrained("tuned", parts="all")[1]


def test_the_quickstart_runs(run, photo, capsys):
    names = run("docs/quickstart.md", array=photo)
    assert names["answer"].text
    assert capsys.readouterr().out == f"3 4 13 52\n{names['answer'].text}\n"
    assert names["tokens"].shape == (13, 4, 48)


def test_the_concepts_run(run, photo):
    small = {"384 //": "32 //", "tile_size=384": "tile_size=32", "longest_edge=1536": "longest_edge=128"}
    names = run("docs/concepts.md", small, array=photo)
    assert names["fewer"].tiling.max_tiles == 5
    assert names["tokens"].shape == (52, 48)
    assert names["mean"].shape == (48,)


def test_the_guide_to_many_images_runs(run, capsys):
    names = run("docs/many-images.md")
    assert "no photograph.txt Image 1: " in capsys.readouterr().out
    assert [isinstance(result, mp.ImageError) for result in names["results"]] == [False, True, False]


def test_the_guide_to_corpora_runs(run, tmp_path):
    names = run("docs/corpora.md")
    assert (names["done"].images, names["done"].errors) == (2, 0)
    assert [vector.shape for vector in names["vectors"]] == [(48,)] * 2
    assert names["found"][0]["path"] == str(tmp_path / "photos" / "later.jpg")


def test_the_guide_to_checkpoints_runs(run, folder):
    names = run("docs/checkpoints.md", folder=folder)
    for saved in ("saved", "for-transformers"):
        _, params = mp.from_pretrained(saved, parts="all")
        assert sorted(params) == sorted(names["params"])
        assert mp.Processor.from_pretrained(saved)


def test_the_guide_to_training_runs(run, photo):
    """The folder that the first example saves is loaded."""
    tiles = mp.tile_image_host(photo, TINY_SMOLVLM.tiling)[:9]
    names = run("docs/training.md", tiles=tiles, teacher=np.ones((9, 4, 1024), np.float32), num_steps=20)
    config, params = mp.from_pretrained("new-connector")
    assert mp.encode_tiles(params, tiles[:2], config=config).shape == (2, 4, 1024)
    assert np.isfinite(names["metrics"]["loss"])


def test_the_guide_to_extending_runs(run):
    try:
        names = run("docs/extending.md")
    finally:
        mp.nn.CONNECTORS.pop("mean", None)
    assert names["tokens"].shape == (52, 48)
    assert names["params"]["connector"]["proj"]["kernel"].shape == (96, 48)


def test_the_guide_to_exports_runs(run, tmp_path):
    names = run("docs/export.md")
    assert names["tokens"].shape == (13, 4, 48)
    assert {path.name for path in (tmp_path / "programs").iterdir()} == {
        "manifest.json",
        "params.npz",
        *(f"{platform}.jax_export" for platform in ("cpu", "cuda", "tpu")),
    }


def test_the_guide_to_accelerators_runs(run):
    assert run("docs/accelerators.md")["tokens"].dtype == "bfloat16"


def test_the_guide_to_many_machines_runs(run):
    names = run("docs/scale.md")
    assert [tokens.shape for tokens in names["results"]] == [(52, 48), (52, 48)]


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
def test_every_page_with_python_is_run(page):
    files = ("tests/test_examples.py", "tests/test_fine_tuning.py", "tests/text/test_guide.py")
    tests = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    assert re.search(rf'(run|run_examples)\(\s*"{re.escape(page)}"', tests), f"no test runs {page}"
