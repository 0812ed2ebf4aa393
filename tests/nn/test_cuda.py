"""What is only computed on an NVIDIA GPU: cuDNN's attention, forward and backward, and the programs around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.nn.attention import attention
from multipatch_reference.distances import distance
from tests.helpers import tolerances
from tests.helpers.models import MEMBERS, random_params, with_layers

pytestmark = [pytest.mark.gpu, pytest.mark.needs_gpu]
SHAPES = [(1024, 12, 64), (729, 16, 72), (676, 16, 72)]  # of a tile of the 256M, the 2.2B and the 8B


def random_qkv(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, shape).astype(jnp.bfloat16).astype(dtype) for key in keys]


@pytest.mark.parametrize("shape", SHAPES)
def test_cudnn_is_as_good_as_plain(shape):
    exact = attention(*random_qkv(shape, jnp.float32), precision="highest")
    mine, plain = (attention(*random_qkv(shape, jnp.bfloat16), kernel=name) for name in ("cudnn", "plain"))
    assert distance(mine, exact) <= tolerances.BFLOAT16_RATIO * distance(plain, exact)


@pytest.mark.parametrize("shape", SHAPES)
def test_cudnns_gradients_are_as_good_as_plains(shape):
    def gradients(dtype, **how):
        def total(*qkv):
            return jnp.sum(jnp.sin(attention(*qkv, **how).astype(jnp.float32)))

        return jax.grad(total, argnums=(0, 1, 2))(*random_qkv(shape, dtype))

    exact = gradients(jnp.float32, precision="highest")
    mine, plain = (gradients(jnp.bfloat16, kernel=name) for name in ("cudnn", "plain"))
    for one, other, truth in zip(mine, plain, exact, strict=True):
        assert distance(one, truth) <= tolerances.BFLOAT16_GRADIENT_RATIO * distance(other, truth)


def bfloat16_model(name):
    config = with_layers(MEMBERS[name], 3)
    exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), random_params(config))
    side = config.tiling.tile_size
    tiles = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    return config, exact, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact), tiles


@pytest.mark.parametrize("name", ["SmolVLM-256M", "SmolVLM-2.2B", "Idefics3-8B"])
def test_the_programs_of_cuda_are_as_good_as_float32_products(name):
    config, exact_params, params, tiles = bfloat16_model(name)
    exact = mp.encode_tiles(exact_params, tiles, config=config)
    plain = mp.encode_tiles(params, tiles, config=config, compute=mp.Compute(attention="plain"))
    inside = jax.jit(lambda params, tiles: mp.encode_tiles(params, tiles, config=config))
    for tokens in (mp.encode_tiles(params, tiles, config=config), inside(params, tiles)):
        assert tokens.dtype == jnp.bfloat16
        assert distance(tokens, exact) <= tolerances.BFLOAT16_RATIO * distance(plain, exact)


@pytest.mark.parametrize("name", ["SmolVLM-256M", "SmolVLM-2.2B"])
def test_gradients_of_the_tower_are_those_of_plain(name):
    config, exact_params, params, tiles = bfloat16_model(name)

    def gradient(params, **compute):
        def loss(params):
            tokens = mp.encode_tiles(params, tiles[:1], config=config, compute=mp.Compute(**compute))
            return jnp.mean(jnp.square(tokens.astype(jnp.float32)))

        return mp.params.flatten(jax.grad(loss)(params))

    exact, mine, plain = gradient(exact_params), gradient(params), gradient(params, attention="plain")
    for path, truth in exact.items():
        if path.endswith("k_proj/bias"):  # a softmax cancels it: its gradient is rounding alone
            continue
        assert distance(mine[path], truth) <= tolerances.BFLOAT16_GRADIENT_RATIO * distance(plain[path], truth), path


def test_a_gpu_takes_cudnn_in_16_bits():
    config, _, params, _ = bfloat16_model("SmolVLM-2.2B")
    params, execution = mp.encode.prepare_execution(params, config)
    assert execution.compute.attention == "cudnn"
