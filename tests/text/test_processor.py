"""The processor: the reference's ids and mask for texts with images, and its text of ids."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multipatch_jax.text import Processor
from tests.helpers.images import plan_of
from tests.helpers.processes import python_output
from tests.helpers.text import UNEVEN, their_inputs
from tests.helpers.tokenizer import IMAGE


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_uneven_samples_has_the_references_ids_and_mask(side, model, photos):
    texts, names = UNEVEN
    images = [[photos[name] for name in sample] for sample in names]
    expected = their_inputs(model, texts, images, side)
    flat = [image for sample in images for image in sample]
    for given in (images, flat):
        got = model.ours(texts, given, config=model.config, padding_side=side)
        np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
        np.testing.assert_array_equal(got.attention_mask, expected["attention_mask"])
        assert [plan.num_tiles for plan in got.plans] == [plan_of(x, model.config.tiling).num_tiles for x in flat]
        assert all(np.array_equal(mine, given) for mine, given in zip(got.images, flat, strict=True))


def test_truncation_keeps_whole_images(model, photos):
    text, images = "Describe <image> please.", [photos["cat"]]
    whole = model.ours([text], images, config=model.config).input_ids
    end = int(np.flatnonzero(whole[0] == IMAGE)[-1]) + 1
    got = model.ours([text], images, config=model.config, max_length=end).input_ids
    np.testing.assert_array_equal(got, whole[:, :end])
    long = model.ours(["short", "a much longer text"], config=model.config, max_length=6)
    assert long.input_ids.shape == (2, 6)
    with pytest.raises(
        ValueError, match=rf"sample 1 has {whole.shape[1]} tokens and its last image ends at {end}, got "
    ):
        model.ours(["x", text], images, config=model.config, max_length=end - 1)
    with pytest.raises(ValueError, match="max_length must be a positive"):
        model.ours([text], images, config=model.config, max_length=0)


def test_decode_is_the_references(model):
    ids = model.tokenizer("Où <image>est\n\n-elle ?<end_of_utterance>")["input_ids"]
    assert (
        model.ours.decode(np.array(ids)) == model.tokenizer.decode(ids, skip_special_tokens=True) == "Où est\n\n-elle ?"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


def test_one_image_is_no_list_of_images(model, photos):
    for image in ("photo.jpg", Path("photo.jpg"), b"bytes", photos["cat"], Image.new("RGB", (3, 3))):
        with pytest.raises(ValueError, match=r"pass \[image\]"):
            model.ours(["<image>"], image, config=model.config)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        Processor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Processor.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="the hub did not give its tokenizer"):
        Processor.from_pretrained("nobody/nothing-here")


def test_the_extras_libraries_are_imported_at_first_use_and_named_when_missing(model, monkeypatch):
    code = "import sys, multipatch_jax.text; print({'tokenizers', 'jinja2'} & set(sys.modules))"
    assert python_output("-c", code) == "set()\n"
    for name in ("tokenizers", "jinja2.sandbox"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=r"install multipatch_jax\[text\]"):
                Processor.from_pretrained(model.folder)
