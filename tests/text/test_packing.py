"""Visual tokens put in their places among the text's embeddings, as the reference does; wrong counts are refused."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.idefics3.modeling_idefics3 import Idefics3Model

from multipatch_jax.text import embed_tokens, labels_for, pack
from tests.helpers.tokenizer import IMAGE


def make_batch(places, length=40, width=8, side="left", seed=0, dtype: Any = np.float32):
    """(ids, mask, text embeddings, visual tokens): sample b has `places[b]` image tokens in text of random length."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(places), length), 2, np.int32)
    mask = np.zeros_like(ids)
    for sample, count in enumerate(places):
        row = rng.integers(3, 200, int(rng.integers(max(count, 1), length + 1)))
        row[rng.permutation(len(row))[:count]] = IMAGE
        where = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[sample, where], mask[sample, where] = row, 1
    text = rng.normal(size=(len(places), length, width)).astype(dtype)
    return ids, mask, text, rng.normal(size=(sum(places), width)).astype(np.float32)


def reference_pack(ids, text, tokens, image_token_id=IMAGE):
    """The reference's method, called without its model: it reads only the image token's id."""
    model: Any = types.SimpleNamespace(config=types.SimpleNamespace(image_token_id=image_token_id))
    arrays: Any = (torch.from_numpy(ids), torch.from_numpy(text), torch.from_numpy(tokens))
    return Idefics3Model.inputs_merger(model, *arrays).numpy()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(range(3)), max_size=12).map(lambda image: [image.count(sample) for sample in range(3)]),
    st.sampled_from(["left", "right"]),
    st.integers(0, 99),
)
def test_packing_equals_the_references_masked_scatter(places, side, seed):
    ids, _, text, tokens = make_batch(places, side=side, seed=seed)
    got = np.asarray(pack(ids, text, tokens, image_token_id=IMAGE))
    np.testing.assert_array_equal(got, reference_pack(ids, text, tokens))
    capacity = np.concatenate([tokens, np.full((40 - len(tokens), 8), 7, np.float32)])
    padded = pack(ids, text, capacity, image_token_id=IMAGE, num_tokens=len(tokens))
    np.testing.assert_array_equal(np.asarray(padded), got)
    images = [tokens[sum(places[:i]) : sum(places[: i + 1])] for i in range(3)]
    listed = pack(ids, text, images, image_token_id=IMAGE)
    np.testing.assert_array_equal(np.asarray(listed), got)
    traced = jax.jit(functools.partial(pack, image_token_id=IMAGE))(ids, text, tokens)
    np.testing.assert_array_equal(np.asarray(traced), got)


def test_tokens_are_cast_to_the_embeddings_dtype_and_text_is_untouched():
    ids, _, text, tokens = make_batch([3, 0, 5], dtype=np.float16)
    got = pack(ids, text, tokens, image_token_id=IMAGE)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(np.asarray(got), reference_pack(ids, text, tokens))
    text = jnp.asarray(text, jnp.bfloat16)
    got = pack(ids, text, tokens, image_token_id=IMAGE)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got)[ids != IMAGE], np.asarray(text)[ids != IMAGE])
    np.testing.assert_array_equal(np.asarray(got)[ids == IMAGE], tokens.astype(jnp.bfloat16))


def test_tiles_of_one_image_need_no_reshape():
    ids, _, text, tokens = make_batch([12])
    got = pack(ids, text, tokens.reshape(3, 4, 8), image_token_id=IMAGE)
    np.testing.assert_array_equal(np.asarray(got), reference_pack(ids, text, tokens))


def test_gradients_reach_every_token_and_every_text_position():
    ids, _, text, tokens = make_batch([3, 0, 5])
    weights = np.random.default_rng(1).normal(size=text.shape).astype(np.float32)

    def loss(text, tokens):
        return (pack(ids, text, tokens, image_token_id=IMAGE) * weights).sum()

    for function in (loss, jax.jit(loss)):
        to_text, to_tokens = jax.grad(function, (0, 1))(text, tokens)
        np.testing.assert_array_equal(to_text, np.where(ids[..., None] == IMAGE, 0, weights))
        np.testing.assert_array_equal(to_tokens, weights[ids == IMAGE])
    images = [tokens[:3], tokens[3:]]
    to_images = jax.grad(lambda images: loss(text, images))(images)
    np.testing.assert_array_equal(np.concatenate(to_images), weights[ids == IMAGE])


def test_one_program_whatever_the_number_and_place_of_images(compilations):
    capacity = np.zeros((64, 24), np.float32)

    def ask(places, **options):
        ids, _, text, tokens = make_batch(places, length=37, width=24, **options)
        capacity[: len(tokens)] = tokens
        got = pack(ids, text, capacity, image_token_id=IMAGE, num_tokens=len(tokens))
        np.testing.assert_array_equal(np.asarray(got), reference_pack(ids, text, tokens))

    ask([3, 0, 5])
    assert len(compilations()) == 1
    for places, side in (([0, 0, 0], "left"), ([30, 30, 4], "right"), ([1, 2, 3], "left")):
        ask(places, side=side, seed=sum(places))
    ids, _, text, tokens = make_batch([1, 2, 3], length=37, width=24)
    total = (ids == IMAGE).sum()
    capacity[: len(tokens)] = tokens
    numbers: tuple[Any, ...] = (total, np.asarray(total, np.int32), jax.device_put(np.int32(total)))
    for num_tokens in numbers:
        pack(ids, text, capacity, image_token_id=IMAGE, num_tokens=num_tokens)
    assert not compilations()


@pytest.mark.parametrize(
    ("places", "sizes", "message"),
    [
        ([4, 8, 4], [4, 4, 4, 3], r"3 tokens for the 4 places of sample 2 .*by sample: \[4, 8, 4\], tokens in all: 15"),
        ([4, 8, 4], [4, 4, 4], "0 tokens for the 4 places of sample 2 "),
        ([4, 8, 4], [8, 4, 4], "8 tokens for the 4 places of sample 0 "),
        ([4, 8, 4], [4, 4, 6, 2], "10 tokens for the 8 places of sample 1 "),
        ([4, 8, 4], [4, 4, 4, 4, 2], "2 tokens more than the places of all 3 samples"),
        ([4, 8], [], "0 tokens for the 4 places of sample 0 "),
        ([0, 0], [4], "4 tokens more than the places of all 2 samples"),
    ],
)
def test_tokens_that_do_not_fill_their_places_are_refused(places, sizes, message, compilations):
    ids, _, text, _ = make_batch(places, length=9)
    images = [np.zeros((size, 8), np.float32) for size in sizes]
    with pytest.raises(ValueError, match=message):
        pack(ids, text, images, image_token_id=IMAGE)
    if sum(sizes) != sum(places):  # of one array, only the total can be wrong
        with pytest.raises(ValueError, match=r"fill the places of each sample exactly"):
            pack(ids, text, np.zeros((sum(sizes), 8), np.float32), image_token_id=IMAGE)
        padded = np.zeros((99, 8), np.float32)
        with pytest.raises(ValueError, match=r"fill the places of each sample exactly"):
            pack(ids, text, padded, image_token_id=IMAGE, num_tokens=sum(sizes))
    on_device = jax.device_put([image.reshape(1, -1, 8) for image in images])  # as encode_tiles gives them
    with pytest.raises(ValueError, match=message):
        pack(ids, text, on_device, image_token_id=IMAGE)
    assert not compilations()


def test_inside_jit_no_image_of_a_list_lies_in_two_samples():
    ids, _, text, tokens = make_batch([2, 4], length=9)
    traced = jax.jit(lambda ids, text, images: pack(ids, text, images, image_token_id=IMAGE))
    for sizes in ([2, 4], [1, 1, 4], [2, 1, 3]):
        images = np.split(tokens, np.cumsum(sizes)[:-1])
        np.testing.assert_array_equal(np.asarray(traced(ids, text, images)), reference_pack(ids, text, tokens))
    for sizes in ([4, 2], [1, 5], [3, 3]):
        images = np.split(tokens, np.cumsum(sizes)[:-1])
        assert np.isnan(traced(ids, text, images)).all()


def test_packing_refuses_arrays_that_do_not_fit():
    ids, _, text, tokens = make_batch([4])
    for arguments, message in (
        ((ids[0], text, tokens), r"input_ids must be an integer array of shape \(B, S\), got int32 of shape \(40,\)"),
        ((ids.tolist(), text, tokens), "input_ids must be an integer array .* got list"),
        ((ids, text[:, :-1], tokens), r"\(B, S\) = \(1, 40\) as input_ids, got float32 of shape \(1, 39, 8\)"),
        ((ids, text, tokens[:, :-1]), r"D = 8 as text_embeddings, .* got float32 of shape \(4, 7\)"),
        ((ids, text, tokens.astype(int)), "visual_tokens must be floating"),
        ((ids, text, [tokens, None]), "visual_tokens must be floating .* got NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(*arguments, image_token_id=IMAGE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_tokens must be 0 to the 4 rows of visual_tokens, got 5"):
        pack(ids, text, tokens, image_token_id=IMAGE, num_tokens=5)
    with pytest.raises(ValueError, match="num_tokens goes with one padded array"):
        pack(ids, text, [tokens], image_token_id=IMAGE, num_tokens=4)
    for wrong in (3.5, np.ones(2, int), "4"):
        with pytest.raises(ValueError, match="num_tokens must be an integer or None, got"):
            pack(ids, text, tokens, image_token_id=IMAGE, num_tokens=wrong)  # pyright: ignore[reportArgumentType]


def test_inside_jit_a_wrong_count_gives_nan_everywhere():
    ids, _, text, tokens = make_batch([4, 3])

    @jax.jit
    def traced(ids, text, tokens, num_tokens=None):
        return pack(ids, text, tokens, image_token_id=IMAGE, num_tokens=num_tokens)

    assert np.isfinite(traced(ids, text, tokens)).all()
    padded = np.concatenate([tokens, tokens])
    assert np.isfinite(traced(ids, text, padded, 7)).all()
    no_images = np.full_like(ids, 5)
    for wrong in (
        (ids, text, tokens[:-1]),
        (ids, text, tokens[:0]),
        (ids, text, padded),
        (ids, text, padded, 6),
        (ids, text, padded, 8),
        (no_images, text, tokens),
    ):
        assert np.isnan(traced(*wrong)).all()
    assert np.isfinite(traced(no_images, text, tokens[:0])).all()


def test_labels_leave_out_images_and_padding():
    ids, mask, _, _ = make_batch([4, 0, 7])
    got = np.asarray(labels_for(ids, image_token_id=IMAGE, attention_mask=mask))
    np.testing.assert_array_equal(got, np.where((ids == IMAGE) | (mask == 0), -100, ids))
    got = np.asarray(jax.jit(functools.partial(labels_for, image_token_id=IMAGE, ignore_index=-1))(ids))
    np.testing.assert_array_equal(got, np.where(ids == IMAGE, -1, ids))
    with pytest.raises(ValueError, match="attention_mask must have the shape of input_ids"):
        labels_for(ids, image_token_id=IMAGE, attention_mask=mask[:, 1:])


def test_embeddings_are_rows_of_the_table_and_unknown_ids_are_refused():
    table = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    params = {"text_model": {"embed_tokens": {"embedding": table}}}
    ids = np.array([[0, 19, 7], [3, 3, 1]])
    np.testing.assert_array_equal(embed_tokens(params, ids), table[ids])
    for wrong in (20, -1, -100):
        bad = ids.copy()
        bad[1, 2] = wrong
        with pytest.raises(ValueError, match=f"0 to 19, got {wrong} in sample 1 at place 2"):
            embed_tokens(params, bad)
        traced = np.asarray(jax.jit(embed_tokens)(params, bad))
        np.testing.assert_array_equal(np.isnan(traced).all(-1), bad == wrong)
    with pytest.raises(ValueError, match=r'load them with parts=\("vision", "connector", "embeddings"\)'):
        embed_tokens({"vision_model": {}}, ids)
