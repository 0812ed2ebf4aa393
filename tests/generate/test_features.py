"""`text_features` and `text_logits`: padding, positions, gradients, transforms, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.decoder import embeddings, make_decoder, position_ids, reference_outputs, with_text
from tests.helpers.models import TINY, TINY_TEXT, random_params

TEXT = dataclasses.replace(TINY_TEXT, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3)
CONFIG = with_text(TEXT)
PARAMS = random_params(CONFIG)
EMBEDS = embeddings(CONFIG, 3, 12)


def padded(lengths, sides, total):
    """(embeddings, mask) of rows of these lengths, padded with other embeddings on their sides."""
    mask = np.zeros((len(lengths), total), np.int32)
    embeds = embeddings(CONFIG, len(lengths), total, seed=9)
    for row, (length, side) in enumerate(zip(lengths, sides, strict=True)):
        where = slice(total - length, total) if side == "left" else slice(0, length)
        mask[row, where] = 1
        embeds[row, where] = EMBEDS[row, :length]
    return embeds, mask


@settings(deadline=None, max_examples=12)
@given(
    lengths=st.tuples(*[st.integers(1, 12)] * 3),
    sides=st.tuples(*[st.sampled_from(["left", "right"])] * 3),
    total=st.sampled_from([12, 19]),
    kind=st.sampled_from([np.int32, bool]),
    given_positions=st.booleans(),
)
def test_padding_on_any_side_changes_no_real_position(lengths, sides, total, kind, given_positions):
    embeds, mask = padded(lengths, sides, total)
    positions = position_ids(mask) if given_positions else None
    how = {"config": CONFIG, "attention_mask": mask.astype(kind), "position_ids": positions}
    found = np.asarray(mp.text_logits(PARAMS, embeds, **how))
    alone = np.asarray(mp.text_logits(PARAMS, EMBEDS, config=CONFIG))
    assert np.isfinite(found).all()
    expected = np.concatenate([alone[row, :length] for row, length in enumerate(lengths)])
    assert distance(found[mask == 1], expected) <= tolerances.SAME_PROGRAM  # one token by itself may round up to it


def test_positions_are_counted_from_the_mask_if_they_are_not_given():
    mask = np.array([[0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0]] * 3)  # a gap too: positions are relative to each other
    how = {"config": CONFIG, "attention_mask": mask}
    counted = np.asarray(mp.text_features(PARAMS, EMBEDS, **how))
    np.testing.assert_array_equal(mp.text_features(PARAMS, EMBEDS, **how, position_ids=position_ids(mask)), counted)
    places = np.broadcast_to(np.arange(12), (3, 12))
    assert distance(mp.text_features(PARAMS, EMBEDS, **how, position_ids=places), counted) > 1e-3


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**31), most=st.sampled_from([20, 2000]))
def test_any_positions_give_the_references_result(seed, most):
    positions = np.random.default_rng(seed).integers(0, most, (3, 12))
    decoder = make_decoder(CONFIG)
    theirs, _ = reference_outputs(decoder.reference.double(), EMBEDS, None, positions)
    ours = mp.text_features(decoder.params, EMBEDS, config=CONFIG, position_ids=positions)
    assert distance(ours, theirs) <= tolerances.FLOAT32_CEILING


def test_no_token_sees_a_later_one():
    changed = EMBEDS.copy()
    changed[:, 7:] = 3
    before, after = (np.asarray(mp.text_features(PARAMS, x, config=CONFIG)) for x in (EMBEDS, changed))
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    assert (after[:, 7:] != before[:, 7:]).any(axis=-1).all()


def test_a_row_without_a_real_token_leaves_the_others_alone():
    mask = np.array([[0] * 12, [1] * 12, [1] * 12])
    found = np.asarray(mp.text_logits(PARAMS, EMBEDS, config=CONFIG, attention_mask=mask))
    assert np.isfinite(found).all()
    assert distance(found[1:], mp.text_logits(PARAMS, EMBEDS, config=CONFIG)[1:]) <= tolerances.SAME_PROGRAM


# ---------------------------------------------------------------------------------------------------------------------
# Transforms.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_gradients_equal_pytorchs(remat, tied):
    """Of the embeddings and of every param, with padding; sums of more than 256 terms are made in blocks."""
    config = with_text(TEXT, intermediate_size=320, tie_word_embeddings=tied)
    decoder = make_decoder(config)
    embeds, mask = padded((12, 7, 9), ("left", "left", "right"), 12)
    direction = np.random.default_rng(3).normal(size=(3, 12, 200)).astype(np.float32) * mask[..., None]

    def loss(params, embeds):
        how = {"config": config, "attention_mask": mask, "compute": mp.Compute(remat=remat)}
        return jnp.mean(mp.text_logits(params, embeds, **how) * direction)

    ours, of_embeds = jax.grad(loss, argnums=(0, 1))(decoder.params, embeds)
    leaf = torch.from_numpy(embeds).requires_grad_()
    positions = torch.from_numpy(position_ids(mask).astype(np.int64))
    found = decoder.reference(inputs_embeds=leaf, attention_mask=torch.from_numpy(mask), position_ids=positions)
    (found.logits * torch.from_numpy(direction)).mean().backward()
    assert leaf.grad is not None
    assert distance(np.asarray(of_embeds) * mask[..., None], leaf.grad.numpy() * mask[..., None]) <= tolerances.GRADIENT
    tensors = dict(mp.params.from_params(config, ours))
    theirs = {
        name.replace("model.", "model.text_model.", 1): tensor.grad.numpy()
        for name, tensor in decoder.reference.named_parameters()
        if tensor.grad is not None
    }
    assert len(theirs) == 3 * 9 + 2
    for name, gradient in theirs.items():
        assert distance(tensors[name], gradient) <= tolerances.GRADIENT, name


def test_remat_keeps_less():
    config = with_text(TEXT, num_hidden_layers=12)
    params, temporary = random_params(config), {}
    embeds = embeddings(config, 2, 200)
    for remat in (False, True):
        how = {"config": config, "compute": mp.Compute(remat=remat)}
        grad = jax.jit(jax.grad(lambda x, how=how: jnp.sum(mp.text_features(params, x, **how) ** 2)))
        memory = grad.lower(embeds).compile().memory_analysis()
        assert memory is not None
        temporary[remat] = memory.temp_size_in_bytes
    assert temporary[True] < 0.5 * temporary[False]


def test_jit_and_vmap_change_nothing():
    mask = np.array([[0] * 4 + [1] * 8, [1] * 12, [1] * 5 + [0] * 7])

    def one(row, mask):
        return mp.text_logits(PARAMS, row[None], config=CONFIG, attention_mask=mask[None])[0]

    batch = np.asarray(mp.text_logits(PARAMS, EMBEDS, config=CONFIG, attention_mask=mask))
    mapped = jax.jit(jax.vmap(one))(EMBEDS, mask)
    assert distance(mapped, batch) <= tolerances.SAME_PROGRAM


def test_values_of_masks_and_positions_compile_nothing(compilations):
    run = {"config": CONFIG, "attention_mask": np.ones((3, 12), int), "position_ids": np.zeros((3, 12), int)}
    mp.text_features(PARAMS, EMBEDS, **run)
    compilations()
    run |= {"attention_mask": np.arange(36).reshape(3, 12) % 2, "position_ids": np.full((3, 12), 77)}
    mp.text_features(PARAMS, EMBEDS, **run)
    assert not compilations()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused.


def test_a_retriever_has_features_and_no_logits():
    config = dataclasses.replace(CONFIG, embedding_size=8)
    params = random_params(config)
    assert "linear" in params
    assert mp.text_features(params, EMBEDS, config=config).shape == EMBEDS.shape
    with pytest.raises(ValueError, match=r"A retriever \(config.embedding_size=8\) has no lm_head"):
        mp.text_logits(params, EMBEDS, config=config)


def only(*parts):
    roots = {"vision": "vision_model", "connector": "connector"}
    return {roots[part]: PARAMS[roots[part]] for part in parts}


@pytest.mark.parametrize("function", [mp.text_features, mp.text_logits])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": only("vision", "connector")}, 'have no text decoder: load them with parts="all"'),
        ({"params": {"text_model": {"embed_tokens": {}}}}, 'have no text decoder: load them with parts="all"'),
        ({"params": {**PARAMS, "lora": {}}}, "call merge_lora"),
        ({"params": mp.nn.split_layers(PARAMS)}, "not of this config"),
        ({"config": dataclasses.replace(CONFIG, text=None)}, "this config has text=None"),
        ({"config": TINY}, "not of this config"),
        ({"inputs_embeds": EMBEDS[..., :5]}, r"inputs_embeds must be floating of shape \(B, S, 48\), got float32"),
        ({"inputs_embeds": EMBEDS[0]}, r"inputs_embeds must be floating of shape \(B, S, 48\), got float32"),
        ({"inputs_embeds": EMBEDS.astype(int)}, "inputs_embeds must be floating"),
        ({"attention_mask": np.ones((3, 11), int)}, r"attention_mask must be integers of shape \(3, 12\)"),
        ({"attention_mask": np.ones((3, 12))}, r"attention_mask must be .* got float64 of shape \(3, 12\)"),
        ({"attention_mask": np.full((3, 12), 2)}, "attention_mask must be integers from 0 to 1, got 2 to 2"),
        ({"position_ids": np.full((3, 12), -1)}, "position_ids must be integers from 0 to 2147483647, got -1 to -1"),
        ({"position_ids": np.ones((3, 12), bool)}, "position_ids must be integers of shape"),
        ({"compute": "bfloat16"}, "compute must be an mp.Compute"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(function, change, message):
    arguments = {"params": PARAMS, "inputs_embeds": EMBEDS, "config": CONFIG} | change
    with pytest.raises(ValueError, match=message):
        function(arguments.pop("params"), arguments.pop("inputs_embeds"), **arguments)
