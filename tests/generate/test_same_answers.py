"""The reference's answers: the greedy tokens of transformers' `generate`, as long as no choice is close."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from skimage import data

import multipatch_jax as mp
from tests.helpers import tolerances
from tests.helpers.text import TextModel, make_text_model, their_inputs

LEAST = 32  # of the 64 tokens, at least so many are compared


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TextModel:
    return make_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def generator(model) -> mp.Generator:
    return mp.Generator.from_pretrained(model.folder, max_length=1024, batch_size=2)


def their_tokens(model, inputs, count=64):
    """The reference's greedy tokens up to the first close choice: one that rounding could turn."""
    with torch.no_grad():
        found = model.reference.generate(
            **inputs,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    for number, logits in enumerate(found.logits):
        best, next_best = logits[0].topk(2).values
        if best - next_best <= 10 * tolerances.LOGITS * logits.abs().max():
            return tokens[:number]
    return tokens


CASES = {
    "one image": ("What is <image>?", ["cat"]),
    "two images": ("Two: <image> <image> Which?", ["rocket", "coffee"]),
    "no image": ("The capital of France is", []),
}


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_the_references(case, model, generator, photo):
    photos = {"cat": photo, "rocket": data.rocket()[:, :200], "coffee": data.coffee()}
    text, names = CASES[case]
    images = [photos[name] for name in names]
    expected = their_tokens(model, their_inputs(model, [text], [images]))
    (answer,) = generator.generate([text], images, max_new_tokens=64)
    assert LEAST <= len(expected)
    assert answer.ids[: len(expected)] == expected


def test_greedy_tokens_about_a_video_are_the_references(model, generator, photo):
    """The reference's model gets our frames: its video processor does not run here."""
    frames = [photo[:, start : start + 200] for start in (0, 80, 160)]
    chat = [{"role": "user", "content": [{"type": "video", "video": frames, "fps": 2}, {"type": "text", "text": "?"}]}]
    tiling = model.config.tiling
    tiling = dataclasses.replace(
        tiling, longest_edge=tiling.tile_size, do_image_splitting=False, resampler="torchvision"
    )
    tiles = np.concatenate([mp.tile_image_host(frame, tiling) for frame in frames])
    pixels = np.moveaxis(np.asarray(mp.image.normalize(jnp.asarray(tiles))), -1, -3)
    inputs = model.ours([chat], config=model.config)
    theirs = {
        "input_ids": torch.from_numpy(inputs.input_ids).long(),
        "attention_mask": torch.from_numpy(inputs.attention_mask).long(),
        "pixel_values": torch.from_numpy(pixels.copy())[None],
    }
    expected = their_tokens(model, theirs)
    (answer,) = generator.generate([chat], max_new_tokens=64)
    assert LEAST <= len(expected)
    assert answer.ids[: len(expected)] == expected
