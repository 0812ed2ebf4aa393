"""JAX's own switches change no result: every public function that computes, under each of them."""

import dataclasses
import functools
import re
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multipatch_jax as mp
from tests.helpers import tolerances
from tests.helpers.language import language_batch
from tests.helpers.models import TINY_SMOLVLM, make_model
from tests.helpers.tokenizer import save_tokenizer

SWITCHES: dict[str, Callable[[], Any]] = {
    "jax_enable_x64": functools.partial(jax.enable_x64, True),
    "jax_numpy_rank_promotion=raise": functools.partial(jax.numpy_rank_promotion, "raise"),
    "jax_numpy_dtype_promotion=strict": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "jax_debug_nans": functools.partial(jax.debug_nans, True),
    "jax.disable_jit": jax.disable_jit,
    "jax.checking_leaks": jax.checking_leaks,
}
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (70, 90, 3), np.uint8)
SMALL = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
PIXELS = RANDOM.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
MASK = np.arange(64) < np.array([64, 40])[:, None, None] + np.zeros((2, 64, 1), int)
IDS = np.array([[5, 49190, 49190, 7], [3, 49190, 49190, 2]])
TOKENS = RANDOM.normal(size=(4, 48)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with a tokenizer beside it, its language model loaded too, and the execution of a train step."""
    made = make_model(TINY_SMOLVLM, tmp_path_factory.mktemp("switches"))
    save_tokenizer(made.folder)
    _, whole = mp.from_pretrained(made.folder, parts="all")
    half = mp.from_pretrained(made.folder, dtype="bfloat16", parts="all")[1]
    processor = mp.Processor.from_pretrained(made.folder)
    return types.SimpleNamespace(**made._asdict() | {"params": whole, "half": half, "processor": processor})


def train_once(m, trainable="connector", params=None, **options):
    def loss(params, batch, rng, encode):
        del rng
        return mp.train.distillation_loss(encode(params, batch["tiles"]), batch["teacher"])

    batch = {"tiles": mp.tile_image_host(SMALL, m.config.tiling)[:1], "teacher": TOKENS[None]}
    batch = {name: np.repeat(array, 2, axis=0) for name, array in batch.items()}
    params = {name: (params or m.params)[name] for name in ("vision_model", "connector")}
    params = mp.params.add_lora(jax.random.key(1), params, rank=2) if trainable == "lora" else params
    optimizer = optax.sgd(1e-3, momentum=0.9)  # optax's adam does not run under strict promotion itself
    state = mp.train.init_train_state(params, optimizer, trainable=trainable, rng=jax.random.key(0))
    step = mp.train.make_train_step(loss, optimizer, config=m.config, trainable=trainable, max_norm=1.0, **options)
    state, metrics = step(state, batch)
    return metrics


def one_layer(params, config):
    """The features of a decoder of the first layer. Two layers in bfloat16 would differ by more than the bound."""
    text = params["text_model"]
    text = text | {"layers": jax.tree.map(lambda x: x[:1], text["layers"])}
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_hidden_layers=1))
    return mp.text_features(params | {"text_model": text}, TOKENS[None].astype("bfloat16"), config=config)


def one_layer_of_tower(params, config):
    """The tokens of an image by a tower of its first layer, for the same reason."""
    tower = params["vision_model"]
    layers = jax.tree.map(lambda x: x[:1], tower["encoder"]["layers"])
    params = params | {"vision_model": tower | {"encoder": {"layers": layers}}}
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, num_hidden_layers=1))
    return mp.encode_image(params, IMAGE, config=config)


def decode(params, cache, config):
    """A prompt of two rows of two tokens, and one token more."""
    apply: Any = jax.jit(mp.nn.LlamaModel(config).apply)  # else each of its operations is compiled by itself
    x, params = jnp.asarray(TOKENS).reshape(2, 2, 48), {"params": params["text_model"]}
    places = jnp.array([[0, 1], [0, 1]], jnp.int32)
    _, cache = apply(params, x, places, jnp.array([[False, True], [True, True]]), cache)
    return apply(params, x[:, :1], jnp.array([[2], [5]], jnp.int32), None, cache)


CALLS: dict[str, Callable[[Any], Any]] = {
    "encode_image": lambda m: mp.encode_image(m.params, IMAGE, config=m.config),
    "encode_image, bfloat16": lambda m: one_layer_of_tower(m.half, m.config),
    "encode_image, jax.Array": lambda m: mp.encode_image(m.params, jnp.asarray(SMALL), config=m.config),
    "encode_image, batch": lambda m: mp.encode_image(m.params, np.stack([SMALL] * 2), config=m.config),
    "encode_tiles": lambda m: mp.encode_tiles(m.params, mp.tile_image_host(SMALL, m.config.tiling), config=m.config),
    "encode_tiles, flax": lambda m: mp.encode_tiles(
        m.params,
        mp.tile_image_host(SMALL, m.config.tiling),
        config=m.config,
        compute=mp.Compute(encoder="flax", attention="plain"),
    ),
    "encode_images": lambda m: mp.encode_images(m.params, [IMAGE, SMALL], config=m.config),
    "encode_images, host": lambda m: mp.encode_images(m.params, [SMALL], config=m.config, tile_on="host"),
    "encode_images, cache": lambda m: mp.encode_images(m.params, [SMALL] * 2, config=m.config, cache=mp.TileCache()),
    "encode_frames": lambda m: mp.text.encode_frames(m.params, [SMALL] * 2, config=m.config),
    "vision_features": lambda m: mp.vision_features(m.params, PIXELS, config=m.config),
    "vision_features, masked": lambda m: mp.vision_features(
        m.params, PIXELS, config=m.config, pixel_attention_mask=MASK
    ),
    "vision_features, layers": lambda m: mp.vision_features(m.params, PIXELS, config=m.config, layers=(0, -1)),
    "MultiPatchVisionProcessor": lambda m: mp.MultiPatchVisionProcessor(m.config).apply(
        {"params": {name: m.params[name] for name in ("vision_model", "connector")}}, jnp.asarray(PIXELS[0])
    ),
    "Idefics3Connector": lambda m: mp.Idefics3Connector(m.config.connector).apply(
        {"params": m.params["connector"]}, jnp.ones((64, 96))
    ),
    "tile_image": lambda m: mp.tile_image(IMAGE, m.config.tiling),
    "tile_image, jax.Array": lambda m: mp.tile_image(jnp.asarray(SMALL), m.config.tiling),
    "tile_image, banded": lambda m: mp.tile_image(jnp.asarray(SMALL), m.config.tiling, implementation="banded"),
    "normalize": lambda m: mp.image.normalize(jnp.asarray(SMALL)),
    "init_params": lambda m: mp.init_params(jax.random.key(0), m.config),
    "retrieval_embeddings": lambda m: mp.nn.retrieval_embeddings(
        {"linear": {"kernel": jnp.ones((48, 8)), "bias": jnp.ones(8)}}, TOKENS[None], np.ones((1, 4), np.int32)
    ),
    "embed_tokens": lambda m: mp.text.embed_tokens(m.params, IDS),
    "pack": lambda m: mp.text.pack(IDS, mp.text.embed_tokens(m.params, IDS), TOKENS, image_token_id=49190),
    "labels_for": lambda m: mp.text.labels_for(IDS, image_token_id=49190, attention_mask=np.ones_like(IDS)),
    "prepare_inputs": lambda m: mp.prepare_inputs(
        m.params, ["<image> Short", "A longer text"], [SMALL], config=m.config, processor=m.processor
    ),
    "text_features": lambda m: mp.text_features(m.params, TOKENS[None], config=m.config, attention_mask=IDS[:1] > 3),
    "text_features, bfloat16": lambda m: one_layer(m.half, m.config),
    "text_features, remat": lambda m: mp.text_features(
        m.params, TOKENS[None], config=m.config, compute=mp.Compute(remat=True), position_ids=IDS[:1]
    ),
    "text_logits": lambda m: mp.text_logits(m.params, TOKENS[None], config=m.config),
    "LlamaModel, cache": lambda m: decode(
        mp.nn.split_layers(m.params), mp.nn.init_cache(m.config.text, 2, 8, "float32"), m.config.text
    ),
    "merge_lora": lambda m: mp.params.merge_lora(mp.params.add_lora(jax.random.key(0), m.params, rank=2)),
    "train step": train_once,
    "train step, accumulated": lambda m: train_once(m, accumulate=2),
    "train step, bfloat16": lambda m: train_once(m, params=m.half, compute=mp.Compute(dtype="bfloat16", remat=True)),
    "train step, lora": lambda m: train_once(m, "lora"),
    "train step, all": lambda m: train_once(m, "all"),
    "language_model_loss": lambda m: mp.train.language_model_loss(
        m.params, language_batch(m.config, rows=2, length=20, num_tiles=2), config=m.config
    ),
    "sigmoid_contrastive_loss": lambda m: mp.train.sigmoid_contrastive_loss(
        jnp.asarray(TOKENS), jnp.asarray(TOKENS[::-1]), log_scale=jnp.float32(2.3), bias=jnp.float32(-10)
    ),
    "pool_tokens": lambda m: mp.train.pool_tokens(jnp.asarray(TOKENS)),
    "cosine_similarity": lambda m: mp.plot.cosine_similarity(TOKENS, 0),
    "pca_colors": lambda m: mp.plot.pca_colors(TOKENS),
    "Generator": lambda m: generate(m),
}


def generate(m):
    """Ids and logprobs of two chats, greedy and drawn, one after another in one slot."""
    generator = mp.Generator(m.params, config=m.config, processor=m.processor, max_length=128, eos_ids=())
    chats, options = ["What is it?", "ab"], {"max_new_tokens": 3, "logprobs": True}
    answers = generator.generate(chats, **options)
    answers += generator.generate(chats, **options, temperature=0.8, repetition_penalty=1.2, seed=[3, 4])
    answers += generator.generate(chats, **options, temperature=1.5, top_k=5, top_p=0.9, min_p=0.05, seed=7)
    answers += generator.generate(chats, **options, temperature=1.0, top_k=5, grammar=re.compile("[a-z]{2,9}"))
    return [(np.array(one.ids, np.int32), np.array(one.logprobs, np.float32)) for one in answers]


@functools.cache
def usual(model_id: int, name: str) -> Any:
    """The result without a switch."""
    return CALLS[name](MODELS[model_id])


MODELS: dict[int, Any] = {}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", CALLS)
def test_a_switch_changes_no_result(name, switch, model):
    MODELS[id(model)] = model
    expected = usual(id(model), name)
    with SWITCHES[switch]():
        found = CALLS[name](model)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert got.dtype == want.dtype
        got, want = np.asarray(got), np.asarray(want)
        if np.issubdtype(want.dtype, np.integer):
            np.testing.assert_array_equal(got, want)
        elif (name, switch) == ("init_params", "jax.disable_jit"):
            assert got.shape == want.shape  # Flax's scan draws other random numbers then
        else:
            # Only compiled code keeps float32 between the operations of a bfloat16 program.
            allowed = 2**-7 if "bfloat16" in name else tolerances.SAME_PROGRAM
            difference = np.float64(got) - np.float64(want)
            assert np.linalg.norm(difference) <= allowed * np.linalg.norm(np.float64(want))
