"""The table of tensors: their number, size, names and shapes, as the reference has them; the check of params."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

import multipatch_jax as mp
import multipatch_reference as reference
from tests.helpers.checkpoints import ALL

BLANK = np.zeros((1, 64, 64, 3), np.uint8)


def test_params_are_plain_dicts_of_the_modules_own_shapes(tiny):
    assert type(tiny.params) is dict
    assert type(tiny.params["vision_model"]["encoder"]["layers"]) is dict
    shapes = jax.tree.map(jax.numpy.shape, mp.init_params(jax.random.key(0), tiny.config))
    assert jax.tree.map(jax.numpy.shape, tiny.params) == shapes
    assert mp.params.flatten(shapes) == mp.params.param_shapes(tiny.config)


@pytest.mark.parametrize("kind", mp.nn.CONNECTORS)
def test_the_row_of_every_connector_has_the_shapes_of_its_module(kind, tiny):
    config = dataclasses.replace(tiny.config, connector=dataclasses.replace(tiny.config.connector, kind=kind))
    params = jax.eval_shape(lambda: mp.init_params(jax.random.key(0), config))
    mp.params.check_params(params, config)
    tokens = jax.eval_shape(lambda params: mp.encode_tiles(params, BLANK, config=config), params)
    assert tokens.shape == (1, config.tiling.tokens_per_tile, config.connector.text_hidden_size)


def test_an_unknown_connector_is_refused(tiny):
    config = dataclasses.replace(tiny.config, connector=dataclasses.replace(tiny.config.connector, kind="resampler"))
    with pytest.raises(ValueError, match=r"ConnectorConfig\.kind must be one of .*got 'resampler'"):
        mp.encode_tiles(tiny.params, BLANK, config=config)
    with pytest.raises(ValueError, match=r"ConnectorConfig\.kind must be one of"):
        mp.init_params(jax.random.key(0), config)


@pytest.mark.parametrize(
    ("name", "vision", "connector"),
    [
        ("SmolVLM-256M-Instruct", 86_433_024, 7_077_888),
        ("SmolVLM-500M-Instruct", 86_433_024, 11_796_480),
        ("SmolVLM-Instruct", 412_987_248, 21_233_664),
        ("Idefics3-8B-Llama3", 412_926_192, 18_874_368),
    ],
)
def test_parameter_totals(name, vision, connector):
    config = mp.PRESETS[name]
    assert mp.params.count_parameters(mp.params.param_shapes(config, ("vision",)).values()) == vision
    assert mp.params.count_parameters(mp.params.param_shapes(config, ("connector",)).values()) == connector


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("SmolVLM-256M-Instruct", 471, 256_484_928),
        ("SmolVLM-500M-Instruct", 489, 507_482_304),
        ("SmolVLM-Instruct", 657, 2_246_272_880),
        ("Idefics3-8B-Llama3", 729, 8_462_086_384),
    ],
)
def test_tensor_counts_with_the_language_model(name, tensors, parameters):
    config = mp.PRESETS[name]
    assert len(mp.params.tensors(config)) == tensors
    assert mp.params.count_parameters(mp.params.param_shapes(config, mp.params.PARTS).values()) == parameters


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("SmolVLM-256M-Instruct", 471, 256_484_928),
        ("SmolVLM-500M-Instruct", 489, 507_482_304),
        ("SmolVLM-Instruct", 657, 2_246_272_880),
        ("SmolVLM2-256M-Video-Instruct", 471, 256_484_928),
        ("SmolVLM2-500M-Video-Instruct", 489, 507_482_304),
        ("SmolVLM2-2.2B-Instruct", 657, 2_246_784_880),
        ("Idefics3-8B-Llama3", 729, 8_462_086_384),
        ("granite-docling-258M", 470, 257_517_120),
    ],
)
def test_totals_of_the_whole_model(name, tensors, parameters):
    config = mp.PRESETS[name]
    assert len(mp.params.tensors(config)) == tensors
    assert mp.params.count_parameters(mp.params.param_shapes(config, mp.params.PARTS).values()) == parameters


@pytest.mark.parametrize("name", ["SmolVLM-Instruct", "SmolVLM2-500M-Video-Instruct", "Idefics3-8B-Llama3"])
def test_names_and_shapes_equal_the_references_own(name):
    config = mp.PRESETS[name]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(reference.hf_config(config))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in mp.params.tensors(config).items()} == theirs


def test_a_check_of_one_part_lets_the_others_be(tiny):
    config, params = mp.from_pretrained(tiny.folder, parts=ALL)
    for part in mp.params.PARTS:
        mp.params.check_params(params, config, (part,))
    params["text_model"]["stranger"] = params["text_model"].pop("embed_tokens")
    with pytest.raises(ValueError, match=r" - text_model/embed_tokens/embedding .*\n \+ text_model/stranger/embedding"):
        mp.params.check_params(params, config, ("embeddings",))
