"""Wrong arguments of public functions: an error of ours, at the door, for each of them."""

import re

import numpy as np
import pytest

import multipatch_jax as mp
from tests.helpers.processes import python_output


def test_a_wrong_argument_is_an_error_of_ours_or_a_result():
    """Twenty wrong values for every argument of every public function that takes any."""
    assert python_output("-m", "tests.helpers.misuse_worker") == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: mp.train.batch_indices(0, num_examples=4, batch_size=0), "batch_size must be a positive number"),
        (lambda m: mp.params.split_params(m.params, "("), "trainable must be a regex, got .*unterminated"),
        (lambda m: mp.encode_images(m.params, [], config=m.config, batch_size=10**9), "at most 1024 tiles in a stream"),
        (lambda m: mp.warmup(m.params, config=m.config, batch_size=10**9), "at most 1024 tiles in a stream"),
        (lambda m: mp.tile_image(m.image, implementation="gatehr"), "gather, banded, batched or None, got 'gatehr'"),
        (lambda m: mp.text.labels_for(m.ids, image_token_id=-1), "image_token_id must be an integer"),
        (lambda m: mp.text.sample_frames(9, float("nan")), "fps must be a finite number above 0, got nan"),
        (
            lambda m: mp.encode_image(m.params, m.image, config=m.config.tiling),
            "must be a ModelConfig, got Tili",
        ),
        (lambda m: mp.plan_tiles(9, 9, m.config), "tiling must be a TilingConfig, got ModelConfig"),
    ],
)
def test_the_error_says_what_was_expected_and_what_came(call, message, tiny, photo):
    tiny = type("Model", (), {"params": tiny.params, "config": tiny.config, "image": photo, "ids": photo[:4, :4, 0]})
    with pytest.raises(ValueError, match=message) as caught:
        call(tiny)
    assert re.fullmatch(r"[^\n]+", str(caught.value))


@pytest.mark.parametrize(
    "call",
    [
        lambda m, n: mp.vision_features(m.params, n(np.zeros((1, 64, 64, 3))), config=m.config),
        lambda m, n: mp.text_features(m.params, n(np.zeros((1, 2, 48))), config=m.config),
        lambda m, n: mp.text.embed_tokens(m.params, n([[1, 2]])),
        lambda m, n: mp.text.labels_for(n([[1, 2]]), image_token_id=9),
        lambda m, n: mp.text.labels_for(np.array([[1, 2]]), image_token_id=9, attention_mask=n([[1, 1]])),
        lambda m, n: mp.text.pack(n([[1]]), np.zeros((1, 1, 2)), np.zeros((0, 2)), image_token_id=9),
        lambda m, n: mp.text.pack(np.array([[1]]), n(np.zeros((1, 1, 2))), np.zeros((0, 2)), image_token_id=9),
        lambda m, n: mp.text.pack(np.array([[9]]), np.zeros((1, 1, 2)), n(np.zeros((1, 2))), image_token_id=9),
        lambda m, n: mp.train.pool_tokens(n(np.zeros((1, 2)))),
    ],
)
def test_numbers_in_the_other_order_of_bytes_are_refused(call, tiny):
    """Of a program that is compiled already, jit would read them as if they were in this machine's."""
    model = tiny._replace(params=mp.from_pretrained(tiny.folder, parts="all")[1])
    with pytest.raises(ValueError, match="must be"):
        call(model, lambda x: np.asarray(x).astype(np.asarray(x).dtype.newbyteorder()))
