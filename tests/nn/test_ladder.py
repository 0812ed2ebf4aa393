"""The tower and connector against the reference, stage after stage.

Each rung of the ladder gets the reference's own input of that stage, so that the first wrong stage names itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import multipatch_jax as mp
from multipatch_jax.nn import siglip
from multipatch_reference import distance, reference_hidden_states
from tests.helpers import tolerances
from tests.helpers.models import MEMBERS, make_model, with_layers
from tests.helpers.parity import assert_float32_parity, normalised, some_tiles


@pytest.fixture(scope="module")
def rungs(photo, tmp_path_factory):
    """The float64 reference's value at every stage, and the model."""
    config = with_layers(MEMBERS["SmolVLM-256M"], 2)
    model = make_model(config, tmp_path_factory.mktemp("ladder"))
    pixels = torch.from_numpy(np.moveaxis(normalised(some_tiles(photo, config, 1)), -1, 1).copy())
    tower, connector = model.reference.double().model.vision_model, model.reference.model.connector
    with torch.no_grad():
        values = {"pixels": pixels.double()}
        values["embeddings"] = tower.embeddings(values["pixels"], torch.ones(1, 32, 32, dtype=torch.bool))
        values["layer 0"] = tower.encoder.layers[0](values["embeddings"], None)
        values["tower"] = tower(values["pixels"]).last_hidden_state
        values["tokens"] = connector(values["tower"])
    return model, {name: value.float() for name, value in values.items()}


def layer_of(params, index):
    return jax.tree.map(lambda x: x[index], params["encoder"]["layers"])


@pytest.mark.parametrize("stage", ["embeddings", "layer 0", "tower", "tokens"])
def test_ladder(stage, rungs):
    model, values = rungs
    config, compute = model.config, mp.nn.resolve_compute(mp.Compute(), "float32")
    params, tower = model.params["vision_model"], model.reference.model.vision_model
    layer = {"params": layer_of(params, 0)}
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    before, theirs, ours = {  # the input's name, the reference's module, ours
        "embeddings": (
            "pixels",
            lambda x: tower.embeddings(x, mask),
            lambda x: siglip.VisionEmbeddings(config.vision, compute).apply({"params": params["embeddings"]}, x),
        ),
        "layer 0": (
            "embeddings",
            lambda x: tower.encoder.layers[0](x, None),
            lambda x: siglip.EncoderLayer(config.vision, compute).apply(layer, x)[0],
        ),
        "tower": (
            "pixels",
            lambda x: tower(x).last_hidden_state,
            lambda x: siglip.VisionTransformer(config.vision).apply({"params": params}, x)[0],
        ),
        "tokens": (
            "tower",
            model.reference.model.connector,
            lambda x: mp.Idefics3Connector(config.connector).apply({"params": model.params["connector"]}, x),
        ),
    }[stage]
    x = values[before]
    with torch.no_grad():
        model.reference.float()
        reference32 = theirs(x)[0]
        model.reference.double()
        reference64 = theirs(x.double())[0]
    mine = ours(jnp.asarray(np.moveaxis(x[0].numpy(), 0, -1) if before == "pixels" else x[0].numpy()))
    assert_float32_parity(mine, reference32, reference64)


def test_inner_features_are_transformers_hidden_states(photo, tmp_path):
    config = with_layers(MEMBERS["SmolVLM-256M"], 3)
    model = make_model(config, tmp_path)
    pixels = normalised(some_tiles(photo, config, 2))
    layers = (3, 0, -2, 1)
    features, inner = mp.vision_features(model.params, pixels, config=config, layers=layers)
    states32 = reference_hidden_states(model.reference, pixels)
    states64 = reference_hidden_states(model.reference.double(), pixels)
    assert list(inner) == list(layers)
    for number in layers:
        assert_float32_parity(inner[number], states32[number], states64[number])
    alone = mp.vision_features(model.params, pixels, config=config)
    assert distance(features, alone) <= tolerances.SAME_PROGRAM


@pytest.mark.parametrize("layers", [(3,), (0, -4), ("1",), (1.0,), (True,), 1])
def test_layers_that_do_not_exist_are_refused(layers, tiny):
    with pytest.raises(ValueError, match="layers must be integers from -3 to 2, got"):
        mp.vision_features(tiny.params, np.zeros((1, 64, 64, 3), np.float32), config=tiny.config, layers=layers)


def test_scan_over_layers_equals_a_loop(tiny, tiny_tiles):
    config, compute = tiny.config.vision, mp.nn.resolve_compute(mp.Compute(), "float32")
    params = tiny.params["vision_model"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 96)), jnp.float32)
    scanned, _ = siglip.Encoder(config, compute).apply({"params": params["encoder"]}, x)
    for index in range(config.num_hidden_layers):
        x, _ = siglip.EncoderLayer(config, compute).apply({"params": layer_of(params, index)}, x)
    assert distance(scanned, x) <= tolerances.SAME_PROGRAM
