"""Small models of the family with every tensor randomised, loaded by the real loading code; photographs."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from skimage import data

import multipatch_jax as mp
import multipatch_reference as reference

TINY = mp.ModelConfig(
    vision=mp.VisionConfig(
        hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8
    ),
    connector=mp.ConnectorConfig(scale_factor=4, text_hidden_size=48),
    tiling=mp.TilingConfig(longest_edge=256, tile_size=64, tokens_per_tile=4),
    text=mp.TextConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=200,
        pad_token_id=2,
    ),
    image_token_id=190,
)


class Model(NamedTuple):
    """A reference model, its folder, and what our loader makes of it."""

    config: mp.ModelConfig
    params: dict[str, Any]
    reference: Any
    folder: Path


def make_model(config: mp.ModelConfig, folder: Path, seed: int = 0) -> Model:
    model = reference.reference_model(config, seed)
    reference.save_checkpoint(model, config, folder)
    loaded, params = mp.from_pretrained(folder)
    assert loaded == config
    return Model(config, params, model, folder)


def with_small_text(config: mp.ModelConfig) -> mp.ModelConfig:
    """The tower and connector of `config` beside a language model that costs nothing to build."""
    text = mp.TextConfig(
        hidden_size=config.connector.text_hidden_size,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=200,
        pad_token_id=2,
    )
    return dataclasses.replace(config, text=text, image_token_id=190)


def with_layers(config: mp.ModelConfig, layers: int) -> mp.ModelConfig:
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, num_hidden_layers=layers))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Model:
    return make_model(TINY, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return data.chelsea()


@pytest.fixture(scope="session")
def tiny_tiles(photo) -> np.ndarray:
    return mp.tile_image_host(photo, TINY.tiling)


@pytest.fixture
def compilations(caplog):
    """Calls give the names of the programs that XLA has compiled since the last call."""
    logger = "jax._src.interpreters.pxla"

    def take() -> list[str]:
        names = [r.getMessage() for r in caplog.records if r.name == logger and "Compiling" in r.getMessage()]
        caplog.clear()
        return names

    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger):
        yield take
