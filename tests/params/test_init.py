"""Random params of any parts."""

import dataclasses

import jax
import numpy as np
import pytest

import multipatch_jax as mp
from tests.helpers.models import TINY_SMOLVLM

KEY = jax.random.key(0)
assert TINY_SMOLVLM.text is not None
UNTIED = dataclasses.replace(TINY_SMOLVLM, text=dataclasses.replace(TINY_SMOLVLM.text, tie_word_embeddings=False))
RETRIEVER = dataclasses.replace(UNTIED, embedding_size=32)


@pytest.mark.parametrize("config", [TINY_SMOLVLM, UNTIED, RETRIEVER], ids=["smolvlm", "untied", "retriever"])
@pytest.mark.parametrize("parts", ["all", "text", "embeddings", "vision", ("connector", "embeddings")])
def test_params_have_the_shapes_of_their_parts(config, parts):
    made = mp.params.flatten(mp.init_params(KEY, config, parts=parts))
    expected = mp.params.param_shapes(config, mp.params.check_parts(config, parts))
    assert {path: x.shape for path, x in made.items()} == dict(expected)
    assert {x.dtype for x in made.values()} == {np.dtype("float32")}


def test_a_part_is_the_same_whichever_others_are_made():
    whole = mp.params.flatten(mp.init_params(KEY, TINY_SMOLVLM, parts="all"))
    for parts in ("vision", "connector", "embeddings", "text"):
        for path, x in mp.params.flatten(mp.init_params(KEY, TINY_SMOLVLM, parts=parts)).items():
            np.testing.assert_array_equal(x, whole[path])
    other = mp.params.flatten(mp.init_params(jax.random.key(1), TINY_SMOLVLM, parts="all"))
    for path, x in whole.items():
        if path.endswith(("kernel", "embedding")):
            assert not np.array_equal(x, other[path]), path


def test_a_random_language_model_keeps_the_variance():
    """No two kernels are alike, and logits are small: a model that is sure of nothing."""
    params = mp.init_params(KEY, UNTIED, parts="all")
    kernels = [x for path, x in mp.params.flatten(params).items() if path.startswith("text") and x.ndim == 3]
    for kernel in kernels:
        assert 0.9 < float(np.std(kernel)) * kernel.shape[1] ** 0.5 < 1.1
        assert not np.array_equal(kernel[0], kernel[1])
    ids = np.arange(8, dtype=np.int32)[None]
    features = mp.text_features(params, mp.text.embed_tokens(params, ids), config=UNTIED)
    assert 0.5 < float(np.std(features)) < 2


@pytest.mark.parametrize("parts", ["decoder", (), 3])
def test_unknown_parts_are_refused(parts):
    with pytest.raises(ValueError, match="parts must name some of"):
        mp.init_params(KEY, TINY_SMOLVLM, parts=parts)


def test_a_language_model_needs_its_config():
    with pytest.raises(ValueError, match="text=None"):
        mp.init_params(KEY, dataclasses.replace(TINY_SMOLVLM, text=None), parts="all")
