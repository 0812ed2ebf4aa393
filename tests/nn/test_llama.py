"""The text decoder against the reference: in whole, stage after stage, and its rotary positions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import multipatch_jax as mp
from multipatch_jax.checkpoint import config_to_hf
from multipatch_jax.nn import llama
from multipatch_jax.nn.rotary import inverse_frequencies, rotary_angles
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.decoder import (
    embeddings,
    in_bfloat16,
    make_decoder,
    params_of,
    position_ids,
    reference_outputs,
    text_of,
    with_text,
)
from tests.helpers.parity import assert_float32_parity

SMALL = {"vocab_size": 500, "num_hidden_layers": 2, "pad_token_id": None}
LLAMA3 = mp.config.RopeConfig(factor=8.0, original_max_position_embeddings=512)
MASK = np.array([[0] * 5 + [1] * 19, [1] * 24])


def texts(name, **changes):
    return with_text(text_of(mp.PRESETS[name]), **changes)


def check_float32(config):
    decoder = make_decoder(config)
    embeds, real = embeddings(config, 2, MASK.shape[1]), MASK == 1
    theirs32 = reference_outputs(decoder.reference, embeds, MASK, position_ids(MASK))
    theirs64 = reference_outputs(decoder.reference.double(), embeds, MASK, position_ids(MASK))
    how = {"config": config, "attention_mask": MASK}
    ours = mp.text_features(decoder.params, embeds, **how), mp.text_logits(decoder.params, embeds, **how)
    for mine, their32, their64 in zip(ours, theirs32, theirs64, strict=True):
        assert mine.dtype == jnp.float32
        assert_float32_parity(np.asarray(mine)[real], their32[real], their64[real])


@pytest.mark.parametrize("vocab_size", [500, pytest.param(49280, marks=pytest.mark.slow)])
def test_float32_of_the_256m_in_full_depth(vocab_size):
    config = texts("SmolVLM-256M-Instruct", vocab_size=vocab_size, pad_token_id=None)
    assert text_of(config).num_hidden_layers == 30
    check_float32(config)


@pytest.mark.parametrize(
    "name",
    ["SmolVLM-500M-Instruct", "granite-docling-258M", *(
        pytest.param(name, marks=pytest.mark.slow) for name in ("SmolVLM-Instruct", "Idefics3-8B-Llama3")
    )],
)  # fmt: skip
def test_float32_of_the_others_widths(name):
    check_float32(texts(name, **SMALL))


def test_float32_at_large_positions():
    """Angles of thousands of radians: a frequency or product that is rounded in another way would be seen here."""
    config = texts("SmolVLM-256M-Instruct", **SMALL)
    decoder, embeds = make_decoder(config), embeddings(config, 2, 40)
    positions = np.stack([np.arange(8150, 8190), np.sort(np.random.default_rng(0).choice(8192, 40, replace=False))])
    theirs32, _ = reference_outputs(decoder.reference, embeds, None, positions)
    theirs64, _ = reference_outputs(decoder.reference.double(), embeds, None, positions)
    ours = mp.text_features(decoder.params, embeds, config=config, position_ids=positions)
    assert_float32_parity(ours, theirs32, theirs64)


@pytest.mark.parametrize("name", ["SmolVLM-256M-Instruct", "SmolVLM-500M-Instruct"])
def test_bfloat16(name):
    config = texts(name, **SMALL | {"num_hidden_layers": 4})
    decoder, embeds = make_decoder(config), embeddings(config, 2, 48)
    positions = np.stack([np.arange(48), np.arange(7000, 7048)])  # where angles in bfloat16 would be nonsense
    exact = reference_outputs(decoder.reference, embeds, None, positions)
    half = in_bfloat16(decoder.reference)
    theirs = reference_outputs(half, embeds, None, positions)
    params, rounded = params_of(config, half), jnp.asarray(embeds, jnp.bfloat16)
    ours = [f(params, rounded, config=config, position_ids=positions) for f in (mp.text_features, mp.text_logits)]
    assert [array.dtype for array in ours] == [jnp.bfloat16, jnp.float32]
    for mine, their, truth in zip(ours, theirs, exact, strict=True):
        assert distance(mine, truth) <= tolerances.BFLOAT16_RATIO * distance(their, truth)


# ---------------------------------------------------------------------------------------------------------------------
# The ladder: each rung gets the reference's own input of that stage.


@pytest.fixture(scope="module")
def rungs():
    config = texts("SmolVLM-256M-Instruct", **SMALL)
    decoder = make_decoder(config)
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, 500, (2, 30)))
    model = decoder.reference.double().model
    with torch.no_grad():
        values = {"ids": ids, "embeddings": model.embed_tokens(ids)}
        values["layers"] = model(inputs_embeds=values["embeddings"]).last_hidden_state
    return decoder, values


@pytest.mark.parametrize("stage", ["embeddings", "layer 0", "layers", "logits"])
def test_ladder(stage, rungs):
    decoder, values = rungs
    config, params, model = text_of(decoder.config), decoder.params["text_model"], decoder.reference.model
    compute = mp.nn.resolve_compute(mp.Compute(), "float32")
    positions = np.broadcast_to(np.arange(30, dtype=np.int32), (2, 30))
    places = llama.Places(*rotary_angles(jnp.asarray(positions), config), jnp.asarray(positions), None, None)
    one = {"params": jax.tree.map(lambda x: x[0], params["layers"])}

    def first_layer(x):
        angles = model.rotary_emb(x, torch.from_numpy(positions.astype(np.int64)))
        mask = torch.zeros(30, 30, dtype=x.dtype).masked_fill(torch.ones(30, 30).triu(1).bool(), -torch.inf)
        return model.layers[0](x, attention_mask=mask[None, None], position_embeddings=angles)

    before, theirs, ours = {  # the input's name, the reference's module, ours
        "embeddings": ("ids", model.embed_tokens, lambda x: mp.text.embed_tokens(decoder.params, x)),
        "layer 0": (
            "embeddings", first_layer, lambda x: llama.DecoderLayer(config, compute).apply(one, x, None, places)[0]
        ),
        "layers": (
            "embeddings",
            lambda x: model(inputs_embeds=x).last_hidden_state,
            lambda x: llama.LlamaModel(config).apply({"params": params}, x, positions)[0],
        ),
        "logits": (
            "layers", decoder.reference.lm_head, lambda x: mp.nn.logits(decoder.params, x, config, compute)
        ),
    }[stage]  # fmt: skip
    x = values[before].float() if before != "ids" else values[before]
    with torch.no_grad():
        decoder.reference.float()
        reference32 = theirs(x)
        decoder.reference.double()
        reference64 = theirs(x.double() if before != "ids" else x)
    mine = ours(jnp.asarray(x.numpy()) if before != "ids" else x.numpy())
    if stage == "embeddings":
        np.testing.assert_array_equal(mine, reference32)
    else:
        assert_float32_parity(mine, reference32, reference64)


def test_scan_over_layers_equals_split_layers(rungs):
    decoder, values = rungs
    x, positions = jnp.asarray(values["embeddings"].float().numpy()), jnp.arange(30, dtype=jnp.int32)[None].repeat(2, 0)
    model = llama.LlamaModel(text_of(decoder.config))
    scanned, _ = model.apply({"params": decoder.params["text_model"]}, x, positions)
    split, _ = model.apply({"params": mp.nn.split_layers(decoder.params)["text_model"]}, x, positions)
    assert distance(split, scanned) <= tolerances.SAME_PROGRAM


def test_params_have_the_modules_own_shapes():
    config = texts("SmolVLM-256M-Instruct", **SMALL)
    model = llama.LlamaModel(text_of(config))
    x, positions = jnp.zeros((1, 2, 576)), jnp.zeros((1, 2), jnp.int32)
    made = mp.params.flatten(jax.eval_shape(model.init, jax.random.key(0), x, positions)["params"])
    named = mp.params.param_shapes(config, "text")
    assert {f"text_model/{path}": value.shape for path, value in made.items()} | {"lm_head/kernel": (576, 500)} == named


# ---------------------------------------------------------------------------------------------------------------------
# Rotary positions.


SCALINGS = (None, LLAMA3, mp.config.RopeConfig(32.0, 1.0, 4.0, 8192), mp.config.RopeConfig(4.0, 2.0, 3.5, 100))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("theta", [10000.0, 100000.0, 130000.0, 273768.0, 500000.0])
def test_frequencies_equal_the_references(theta, width, scaling):
    text = mp.TextConfig(head_dim=width, rope_theta=theta, rope_scaling=scaling, max_position_embeddings=131072)
    hf: Any = LlamaConfig(**config_to_hf(with_text(text))[0]["text_config"])
    assert hf.rope_parameters["rope_type"] == ("default" if scaling is None else "llama3")
    ours, theirs = inverse_frequencies(text), LlamaRotaryEmbedding(hf).inv_freq.numpy()
    if theta == 273768.0:  # `inverse_frequencies` says why
        np.testing.assert_array_max_ulp(ours, theirs, 2)
        assert (ours != theirs).sum() <= 3
    else:
        np.testing.assert_array_equal(ours, theirs)
