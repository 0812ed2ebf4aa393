"""A language model whose head is its embeddings: a file may hold one of them or both."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import multipatch_jax as mp
from multipatch_jax.checkpoint import config_to_hf
from tests.helpers.checkpoints import ALL, assert_same_params, change_tensors
from tests.helpers.models import TINY, TINY_TEXT

EMBEDDINGS, HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(folder):
    """The tiny model's folder, tied, with the embeddings and without the head."""
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY_TEXT, tie_word_embeddings=True))
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)[0]))
    change_tensors(folder, lambda tensors: tensors.pop(HEAD))
    return folder


def test_a_head_equal_to_the_embeddings_is_no_fault(tied):
    _, expected = mp.from_pretrained(tied, parts=ALL)
    change_tensors(tied, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS].copy()}))
    assert_same_params(mp.from_pretrained(tied, parts=ALL)[1], expected)
    mp.from_pretrained(tied)


def test_another_head_is_refused_where_the_text_part_is_loaded(tied):
    def spoil(tensors):
        tensors[HEAD] = tensors[EMBEDDINGS].copy()
        tensors[HEAD][150, 3] += 1

    change_tensors(tied, spoil)
    mp.from_pretrained(tied)
    mp.from_pretrained(tied, parts="embeddings")
    with pytest.raises(mp.CheckpointError, match=r"ties lm_head\.weight to .*hold both and they differ.*to false"):
        mp.from_pretrained(tied, parts="text")
    change_tensors(tied, lambda tensors: tensors.update({HEAD: tensors[HEAD][:7].copy()}))
    with pytest.raises(mp.CheckpointError, match="hold both and they differ"):
        mp.from_pretrained(tied, parts="text")


def test_the_head_alone_serves_as_the_embeddings(tied):
    """safetensors keeps the first name of a shared tensor, and `lm_head` comes first."""
    _, expected = mp.from_pretrained(tied, parts=ALL)
    change_tensors(tied, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDINGS)}))
    assert_same_params(mp.from_pretrained(tied, parts=ALL)[1], expected)


def test_the_shard_of_the_head_is_opened_only_to_be_compared(tied):
    tensors = load_file(tied / "model.safetensors")
    save_file(tensors, tied / "model-00001-of-00002.safetensors")
    save_file({HEAD: tensors[EMBEDDINGS]}, tied / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {HEAD: "model-00002-of-00002.safetensors"}
    (tied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    mp.from_pretrained(tied, parts=ALL)
    (tied / "model-00002-of-00002.safetensors").write_bytes(b"never opened")
    mp.from_pretrained(tied, parts=("vision", "embeddings"))
    with pytest.raises(mp.CheckpointError, match=r"model-00002-of-00002\.safetensors is not a whole"):
        mp.from_pretrained(tied, parts="text")


def test_nan_in_both_is_equal(tied):
    def spoil(tensors):
        tensors[EMBEDDINGS][0, 0] = np.nan
        tensors[HEAD] = tensors[EMBEDDINGS].copy()

    change_tensors(tied, spoil)
    with pytest.warns(UserWarning, match="holds NaN"):
        mp.from_pretrained(tied, parts=ALL)
