"""Small models of the family with every tensor randomised, loaded by the real loading code."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import multipatch_jax as mp
from tests.helpers.tokenizer import IMAGE

TINY_TEXT = mp.TextConfig(
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=16,
    vocab_size=200,
    pad_token_id=2,
)
TINY = mp.ModelConfig(
    vision=mp.VisionConfig(
        hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8
    ),
    connector=mp.ConnectorConfig(scale_factor=4, text_hidden_size=48),
    tiling=mp.TilingConfig(longest_edge=256, tile_size=64, tokens_per_tile=4),
    text=TINY_TEXT,
    image_token_id=190,
)
# With SmolVLM's vocabulary, for texts from `make_tokenizer`.
TINY_SMOLVLM = dataclasses.replace(TINY, image_token_id=IMAGE, text=dataclasses.replace(TINY_TEXT, vocab_size=49280))
# TINY with other tilings: an image is one tile; there is no global tile beside the grid.
UNSPLIT = dataclasses.replace(TINY, tiling=dataclasses.replace(TINY.tiling, do_image_splitting=False))
NO_GLOBAL = dataclasses.replace(TINY, tiling=dataclasses.replace(TINY.tiling, global_tile=False))


class Model(NamedTuple):
    """A reference model, the folder it was saved to, and what our loader reads from there.

    Without torch `reference` is None, and the weights are random all the same.
    """

    config: mp.ModelConfig
    params: dict[str, Any]
    reference: Any
    folder: Path


def make_model(
    config: mp.ModelConfig, folder: Path, seed: int = 0, change: Callable[[Any], object] = lambda reference: None
) -> Model:
    """Makes a reference model, saves it to `folder` and loads it; `change` edits it before it is saved."""
    model = None
    if importlib.util.find_spec("torch") is None:
        if folder.exists():
            folder.rmdir()  # it is empty, and `export_hf` makes its folder itself
        mp.export_hf(folder, config, random_params(config, seed))
    else:
        import multipatch_reference as reference

        model = reference.reference_model(config, seed)
        change(model)
        reference.save_checkpoint(model, config, folder)
    loaded, params = mp.from_pretrained(folder)
    assert loaded == config
    return Model(config, params, model, folder)


def random_params(config: mp.ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Float32 params of every part, all of them random, as large as those of `multipatch_reference.reference_model`."""
    chance = np.random.default_rng(seed)
    parts = mp.params.PARTS if config.text else mp.params.PARTS[:2]

    def values(path: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = path.split("/")[-1]
        inputs = np.prod(shape["/layers/" in path : -1])
        deviation = {"bias": 0.1, "scale": 0.2, "embedding": 0.3, "kernel": 1.3 * inputs**-0.5}[kind]
        return chance.normal(kind == "scale", deviation, shape).astype(np.float32)

    flat = {path: values(path, shape) for path, shape in mp.params.param_shapes(config, parts).items()}
    return jax.tree.map(jax.numpy.asarray, mp.params.unflatten(flat))


def with_small_text(config: mp.ModelConfig) -> mp.ModelConfig:
    """The tower and connector of `config` beside a language model of one small layer."""
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


# Three members of the family in their full shapes. Most tests keep fewer layers, with `with_layers`.
MEMBERS = {
    "SmolVLM-256M": with_small_text(mp.presets.SMOLVLM_256M),
    "SmolVLM-2.2B": with_small_text(mp.presets.SMOLVLM_2_2B),
    "Idefics3-8B": with_small_text(mp.presets.IDEFICS3_8B),
}
