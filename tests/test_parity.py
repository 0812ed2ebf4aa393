"""Same weights, same pixels, same tokens: the tower and connector against the reference, stage after stage.

Each rung of the ladder gets the reference's own input of that stage, so that the first wrong stage names itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.encode import resolve_config
from multipatch_jax.nn import siglip
from tests import tolerances
from tests.conftest import make_model, with_layers, with_small_text

CONFIGS = {  # full shapes; depth as given by the tests
    "SmolVLM-256M": with_small_text(mp.presets.SMOLVLM_256M),
    "SmolVLM-2.2B": with_small_text(mp.presets.SMOLVLM_2_2B),
    "Idefics3-8B": with_small_text(mp.presets.IDEFICS3_8B),
}
CONFIGS_SEEN = (mp.presets.SMOLVLM_256M, mp.presets.SMOLVLM_2_2B, mp.presets.IDEFICS3_8B)


def distance(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def assert_float32_parity(ours, reference32, reference64):
    mine, theirs = distance(ours, reference64), distance(reference32, reference64)
    assert mine <= tolerances.FLOAT32_RATIO * theirs, f"{mine:.2e} from float64, the reference {theirs:.2e}"
    assert mine <= tolerances.FLOAT32_CEILING


def some_tiles(photo, config, count) -> np.ndarray:
    """The last tiles of a real photograph: some crops, and the global one."""
    return mp.tile_image_host(photo, config.tiling)[-count:]


def normalised(tiles) -> np.ndarray:
    return np.asarray(mp.image.normalize(jnp.asarray(tiles)))


def check_model(model, tiles):
    pixels = normalised(tiles)
    features32, tokens32 = reference.image_features(model.reference, pixels)
    features64, tokens64 = reference.image_features(model.reference.double(), pixels)
    model.reference.float()
    features = mp.vision_features(model.params, pixels, config=model.config)
    assert_float32_parity(features, features32, features64)
    tokens = mp.encode_tiles(model.params, tiles, config=model.config)
    assert tokens.shape == (len(tiles), model.config.tiling.tokens_per_tile, model.config.connector.text_hidden_size)
    assert_float32_parity(tokens, tokens32, tokens64)


@pytest.mark.parametrize("implementation", ["auto", "blocked"])  # test_native has every build of the compiled encoder
@pytest.mark.parametrize(
    ("name", "layers", "count"), [("SmolVLM-256M", 12, 2), ("SmolVLM-2.2B", 2, 1), ("Idefics3-8B", 2, 1)]
)
def test_float32(name, layers, count, implementation, photo, tmp_path):
    config = with_layers(CONFIGS[name], layers)
    model = make_model(config, tmp_path)
    model = model._replace(config=dataclasses.replace(config, attention=implementation))
    check_model(model, some_tiles(photo, config, count))


@pytest.mark.parametrize("name", [name for name in mp.PRESETS if mp.PRESETS[name] not in CONFIGS_SEEN])
def test_float32_of_every_other_member(name, photo, tmp_path):
    config = dataclasses.replace(with_small_text(with_layers(mp.PRESETS[name], 1)), embedding_size=None)
    check_model(make_model(config, tmp_path), some_tiles(photo, config, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmolVLM-2.2B", "Idefics3-8B"])
def test_float32_full_depth(name, photo, tmp_path):
    config = CONFIGS[name]
    assert config.vision.num_hidden_layers == 27
    check_model(make_model(config, tmp_path), some_tiles(photo, config, 1))


def test_float32_with_sharp_attention_and_large_channels(photo, tmp_path):
    """What trained towers have and plain random ones lack: it lifts the float32 floor tenfold, for both."""
    config = with_layers(CONFIGS["SmolVLM-256M"], 6)
    model = reference.reference_model(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")) and "vision_model" in name:
                tensor.mul_(3)
        model.model.vision_model.encoder.layers[0].mlp.fc2.bias[17] = 80.0
    reference.save_checkpoint(model, config, tmp_path)
    loaded, params = mp.from_pretrained(tmp_path)
    pixels = normalised(some_tiles(photo, config, 1))
    ours = mp.vision_features(params, pixels, config=loaded)
    features32, _ = reference.image_features(model, pixels)
    features64, _ = reference.image_features(model.double(), pixels)
    assert_float32_parity(ours, features32, features64)


@pytest.mark.parametrize("name", ["SmolVLM-256M", "SmolVLM-2.2B"])
def test_bfloat16(name, photo, tmp_path):
    config = with_layers(CONFIGS[name], 3)
    model = make_model(config, tmp_path)
    tiles = some_tiles(photo, config, 1)
    exact = reference.image_features(model.reference, normalised(tiles))
    theirs = reference.image_features(model.reference.bfloat16(), normalised(tiles))
    reference.save_checkpoint(model.reference, config, tmp_path / "bfloat16")
    _, params = mp.from_pretrained(tmp_path / "bfloat16")
    features = mp.vision_features(params, normalised(tiles), config=config)
    tokens = mp.encode_tiles(params, tiles, config=config)
    for mine, their, truth in zip((features, tokens), theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        assert distance(mine, truth) <= tolerances.BFLOAT16_RATIO * distance(their, truth)


def test_dtype_of_the_config_rules_the_computation(tiny, tiny_tiles):
    config = dataclasses.replace(tiny.config, dtype="bfloat16")
    tokens = mp.encode_tiles(tiny.params, tiny_tiles, config=config)
    assert tokens.dtype == jnp.bfloat16
    assert 1e-4 < distance(tokens, mp.encode_tiles(tiny.params, tiny_tiles, config=tiny.config)) < 2e-2


# ---------------------------------------------------------------------------------------------------------------------
# The ladder. A stage is (the reference's module, ours, the input's name, the output's name).


@pytest.fixture(scope="module")
def rungs(photo, tmp_path_factory):
    """The float64 reference's value at every stage, and the model."""
    config = with_layers(CONFIGS["SmolVLM-256M"], 2)
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


@pytest.mark.parametrize("stage", ["embeddings", "layer 0", "tower", "tokens"])
def test_ladder(stage, rungs):
    model, values = rungs
    config = resolve_config(model.config, model.params)
    params, tower = model.params["vision_model"], model.reference.model.vision_model
    layer = {"params": _layer(params, 0)}
    mask = torch.ones(1, 32, 32, dtype=torch.bool)
    before, theirs, ours = {
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


def _layer(params, index):
    return jax.tree.map(lambda x: x[index], params["encoder"]["layers"])


def test_scan_over_layers_equals_a_loop(tiny, tiny_tiles):
    config = resolve_config(tiny.config, tiny.params)
    params = tiny.params["vision_model"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 96)), jnp.float32)
    scanned = siglip.Encoder(config).apply({"params": params["encoder"]}, x)
    for index in range(config.vision.num_hidden_layers):
        x, _ = siglip.EncoderLayer(config).apply({"params": _layer(params, index)}, x)
    assert distance(scanned, x) <= tolerances.SAME_PROGRAM
