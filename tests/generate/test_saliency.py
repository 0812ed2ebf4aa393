"""`token_saliency`: the gradients of the reference, padding, and what it refuses."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import torch

import multipatch_jax as mp
from multipatch_jax.generate import token_saliency
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.decoder import embeddings, make_decoder, position_ids, with_text
from tests.helpers.models import TINY_TEXT, random_params

TEXT = dataclasses.replace(TINY_TEXT, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3)
CONFIG = with_text(TEXT)
PARAMS = random_params(CONFIG)
EMBEDS = embeddings(CONFIG, 2, 12)
IDS = np.random.default_rng(2).integers(0, 200, (2, 12)).astype(np.int32)


def log_probability(model, embeds, ids, places, mask):
    """The reference's, of the tokens in these places of each row."""
    positions = torch.from_numpy(position_ids(mask).astype(np.int64))
    scores = model(inputs_embeds=embeds, attention_mask=torch.from_numpy(mask), position_ids=positions).logits
    scores = scores.log_softmax(dim=-1)
    return sum(scores[row, place - 1, ids[row, place]] for row, of_row in enumerate(places) for place in of_row)


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_that_of_pytorchs_gradients(tied):
    """Of rows with padding on the left and on the right, and with answers of two lengths."""
    decoder = make_decoder(with_text(TEXT, tie_word_embeddings=tied))
    mask = np.array([[0] * 3 + [1] * 9, [1] * 10 + [0] * 2])
    places = [[9, 10, 11], [8]]
    given = np.array([[9, 10, 11], [8, 0, -1]], np.int32)
    found = token_saliency(decoder.params, EMBEDS, IDS, given, config=decoder.config, attention_mask=mask)
    leaf = torch.from_numpy(EMBEDS.astype(np.float64)).requires_grad_()
    total: Any = log_probability(decoder.reference.double(), leaf, IDS, places, mask)
    total.backward()
    assert leaf.grad is not None
    expected = (leaf.grad.norm(dim=-1) * leaf.norm(dim=-1)).detach().numpy()
    assert found.dtype == np.float32
    assert distance(found, expected) <= tolerances.GRADIENT
    assert not np.asarray(found)[mask == 0].any()  # padding
    assert not np.asarray(found)[0, 11]  # nothing depends on an answer's last token
    assert (np.asarray(found)[0, 3:11] > 0).all()


@torch.no_grad()
def test_it_is_the_slope_of_the_log_probability():
    """By finite differences of the reference: each direction of one token's embedding, both ways.

    The step is as large as it may be: the reference's norms are float32 even in a float64 model.
    """
    decoder, row, step = make_decoder(CONFIG), 0, 1e-3
    found = token_saliency(decoder.params, EMBEDS, IDS, np.array([[10, 11], [0, 0]]), config=CONFIG)
    model = decoder.reference.double()
    for token in (4, 7, 9):
        moves = torch.eye(48, dtype=torch.float64) * step
        batch = torch.from_numpy(EMBEDS[row].astype(np.float64)).repeat(96, 1, 1)
        batch[:, token] += torch.cat([moves, -moves])
        scores = model(inputs_embeds=batch).logits.log_softmax(dim=-1)
        values = sum(scores[:, place - 1, IDS[row, place]] for place in (10, 11))
        gradient = (values[:48] - values[48:]) / (2 * step)  # pyright: ignore[reportIndexIssue]
        expected = gradient.norm() * np.linalg.norm(EMBEDS[row, token])
        assert abs(float(found[row, token]) / float(expected) - 1) <= tolerances.GRADIENT


def test_padding_and_rows_change_nothing():
    alone = token_saliency(PARAMS, EMBEDS[:1], IDS[:1], np.array([[10, 11]]), config=CONFIG)
    for before, after in ((4, 0), (0, 4)):
        pads = ((0, 0), (before, after))
        embeds = np.pad(EMBEDS, (*pads, (0, 0)), constant_values=3)
        mask = np.pad(np.ones((2, 12), int), pads)
        places = np.array([[10, 11, 0], [5, -1, -1]]) + np.array([[before, before, 0], [before, 0, 0]])
        found = token_saliency(PARAMS, embeds, np.pad(IDS, pads), places, config=CONFIG, attention_mask=mask)
        assert distance(found[0, before : before + 12], alone[0]) <= tolerances.GRADIENT


def test_the_length_of_an_embedding_is_not_what_matters():
    """Why the number is no product g . x: the decoder normalises, so that g is nearly at right angles to x."""

    def value(embeds):
        scores = jax.nn.log_softmax(mp.text_logits(PARAMS, embeds, config=CONFIG))
        return scores[0, 10, 7]

    gradient = np.asarray(jax.grad(value)(EMBEDS[:1]))[0, :10]
    along = abs((gradient * EMBEDS[0, :10]).sum(axis=-1))
    sizes = np.linalg.norm(gradient, axis=-1) * np.linalg.norm(EMBEDS[0, :10], axis=-1)
    assert np.median(along / sizes) < 0.3


def test_it_may_be_traced_and_other_places_compile_nothing(compilations):
    places = np.array([[10, 11], [7, 0]])
    expected = token_saliency(PARAMS, EMBEDS, IDS, places, config=CONFIG)
    compilations()
    token_saliency(PARAMS, EMBEDS, IDS, places - 1, config=CONFIG)
    assert not compilations()
    traced = jax.jit(lambda params, embeds: token_saliency(params, embeds, IDS, places, config=CONFIG))
    assert distance(traced(PARAMS, EMBEDS), expected) <= tolerances.GRADIENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": IDS[:, 1:]}, r"input_ids must be integers of shape \(B, S\) for .*\(2, 12\).*got int32"),
        ({"input_ids": IDS.astype(float)}, "input_ids must be integers"),
        ({"places": np.array([[3]])}, r"places must be integers of shape \(B, A\)"),
        ({"places": [3, 4]}, r"places must be .* got list of shape \(\)"),
        ({"inputs_embeds": EMBEDS[0]}, "input_ids must be integers of shape"),
        ({"inputs_embeds": EMBEDS[..., :5]}, "inputs_embeds must be floating of shape"),
        ({"attention_mask": np.ones((2, 12))}, "attention_mask must be integers"),
        ({"config": dataclasses.replace(CONFIG, embedding_size=8)}, "A retriever"),
        ({"config": dataclasses.replace(CONFIG, text=None)}, "this config has text=None"),
        ({"params": {"vision_model": PARAMS["vision_model"]}}, 'load them with parts="all"'),
        ({"compute": "bfloat16"}, "compute must be an mp.Compute"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {"params": PARAMS, "inputs_embeds": EMBEDS, "input_ids": IDS, "places": IDS[:, :2], "config": CONFIG}
    arguments |= change
    first = [arguments.pop(name) for name in ("params", "inputs_embeds", "input_ids", "places")]
    with pytest.raises(ValueError, match=message):
        token_saliency(*first, **arguments)
