"""The tower and connector against the reference, stage after stage.

Each rung of the ladder gets the reference's own input of that stage, so that the first wrong stage names itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import multipatch_jax as mp
from multipatch_jax.encode import resolve_config
from multipatch_jax.nn import siglip
from multipatch_reference import distance
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
    config = resolve_config(model.config, model.params)
    params, tower = model.params["vision_model"], model.reference.model.vision_model
    layer = {"params": layer_of(params, 0)}
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    before, theirs, ours = {  # the input's name, the reference's module, ours
        "embeddings": (
            "pixels",
            lambda x: tower.embeddings(x, mask),
            lambda x: siglip.VisionEmbeddings(config).apply({"params": params["embeddings"]}, x),
        ),
        "layer 0": (
            "embeddings",
            lambda x: tower.encoder.layers[0](x, None),
            lambda x: siglip.EncoderLayer(config).apply(layer, x)[0],
        ),
        "tower": (
            "pixels",
            lambda x: tower(x).last_hidden_state,
            lambda x: siglip.VisionTransformer(config).apply({"params": params}, x),
        ),
        "tokens": (
            "tower",
            model.reference.model.connector,
            lambda x: mp.Idefics3Connector(config).apply({"params": model.params["connector"]}, x),
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


def test_scan_over_layers_equals_a_loop(tiny, tiny_tiles):
    config = resolve_config(tiny.config, tiny.params)
    params = tiny.params["vision_model"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 96)), jnp.float32)
    scanned = siglip.Encoder(config).apply({"params": params["encoder"]}, x)
    for index in range(config.vision.num_hidden_layers):
        x, _ = siglip.EncoderLayer(config).apply({"params": layer_of(params, index)}, x)
    assert distance(scanned, x) <= tolerances.SAME_PROGRAM
