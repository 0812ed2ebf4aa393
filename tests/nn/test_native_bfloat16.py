"""The compiled encoder in bfloat16: every build, with products of pairs and of float32."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.nn import native, siglip
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.compiled import compiled_code
from tests.helpers.models import MEMBERS, make_model
from tests.helpers.parity import normalised, some_tiles
from tests.nn.test_native import SHAPES, an_encoder, in_jax

pytestmark = compiled_code
ODD_HEADS = (5, 35, 5, 9)  # patches a side, width, heads, hidden: heads of seven numbers have no pairs


def compiled(module, build=None, pairs=None):
    """The encoder that a build runs, over bfloat16 params and embeddings; float32 out, to be compared."""
    tower = module.config
    fixed = (tower.num_attention_heads, tower.layer_norm_eps, in_jax(module), build, pairs)
    return jax.jit(lambda layers, x: native.encoder(layers, x, *fixed).astype(jnp.float32))


def rounded(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


@pytest.mark.parametrize("shape", [*SHAPES, ODD_HEADS], ids=str)
def test_every_build_is_closer_to_float32_than_xla_is(shape):
    """Both ways run in every build: that without an instruction for pairs has their portable form."""
    module, params, x = an_encoder(*shape)
    expected = jax.jit(in_jax(module))(params["layers"], x)
    in_bfloat16 = mp.Compute(dtype="bfloat16", attention="blocked", encoder="flax", precision="default")
    by_xla = jax.jit(in_jax(siglip.Encoder(module.config, in_bfloat16)))
    layers, x = rounded(params["layers"]), rounded(x)
    furthest = distance(by_xla(layers, x).astype(jnp.float32), expected)
    for build, pairs in itertools.product(native.builds(), (False, True)):
        assert distance(compiled(module, build, pairs)(layers, x), expected) <= furthest, (build, pairs)


@pytest.mark.parametrize("shape", [SHAPES[3], ODD_HEADS], ids=str)
@pytest.mark.parametrize("build", native.builds())
def test_products_of_floats_are_those_of_the_rounded_params(build, shape):
    """With bfloat16 kernels, and float32 for everything else, only the result is rounded."""
    module, params, x = an_encoder(*shape)
    layers, x = rounded(params["layers"]), rounded(x)
    exact = jax.jit(in_jax(module))(*jax.tree.map(lambda x: x.astype(jnp.float32), (layers, x)))
    found = compiled(module, build, pairs=False)(layers, x)
    assert distance(found, exact) <= 2**-8  # half a unit in the last place of 8 bits


@pytest.mark.parametrize("build", native.builds())
def test_pairs_of_a_build_are_those_of_the_portable_form(build):
    """Sums in another order, and now and then a rounding to the other side."""
    module, params, x = an_encoder(13, 144, 2, 301)
    layers, x = rounded(params["layers"]), rounded(x)
    portable, found = (compiled(module, name, pairs=True)(layers, x) for name in ("baseline", build))
    exact = jax.jit(in_jax(module))(params["layers"], x.astype(jnp.float32))
    assert distance(found, portable) <= 0.5 * distance(portable, exact)


def test_this_machine_takes_pairs_where_it_has_them():
    module, params, x = an_encoder(3, 24, 3, 7)
    layers, x = rounded(params["layers"]), rounded(x)
    chosen = compiled(module)(layers, x)
    best = native.builds()[0]
    same = compiled(module, best, native.has_pairs(best))(layers, x)
    np.testing.assert_array_equal(chosen, same)
    if not native.has_pairs(best):
        pytest.skip("this CPU has no AVX512_BF16: pairs ran in their portable form only")
    assert not np.array_equal(chosen, compiled(module, pairs=False)(layers, x))


@pytest.mark.parametrize("pairs", [False, True], ids=["floats", "pairs"])
def test_nan_and_infinity_reach_every_patch(pairs):
    module, params, x = an_encoder(7, 96, 4, 128)
    layers, x = rounded(params["layers"]), rounded(x)
    for value in (jnp.nan, jnp.inf):
        assert jnp.isnan(compiled(module, pairs=pairs)(layers, x.at[5, 7].set(value))).all()
    broken = jax.tree.map(lambda p: p, layers)
    broken["mlp"]["fc1"]["kernel"] = broken["mlp"]["fc1"]["kernel"].at[0, 3, 5].set(jnp.nan)
    assert jnp.isnan(compiled(module, pairs=pairs)(broken, x)).all()


def test_equal_bits_whatever_runs_beside_it():
    module, params, x = an_encoder(13, 144, 2, 301)
    layers, x = rounded(params["layers"]), rounded(x)
    pending = [compiled(module)(layers, x) for _ in range(20)]  # all dispatched before one is read
    for run in pending:
        np.testing.assert_array_equal(run, pending[0])


@pytest.fixture(scope="module")
def photographed(photo, tmp_path_factory):
    """(config, bfloat16 params, tiles of a photograph, their tokens in float32, how far torch's bfloat16 is from them).

    Weights of published checkpoints are bfloat16, so float32 is the truth about the rounded ones.
    """
    torch = pytest.importorskip("torch", reason="compares with the reference")
    config = MEMBERS["SmolVLM-256M"]
    model = make_model(config, tmp_path_factory.mktemp("model"))
    tiles = some_tiles(photo, config, 1)
    _, theirs = reference.image_features(model.reference.to(torch.bfloat16), normalised(tiles))
    _, truth = reference.image_features(model.reference.to(torch.float32), normalised(tiles))
    return config, rounded(model.params), tiles, truth, distance(theirs, truth)


@pytest.mark.parametrize("build", native.builds())
def test_tokens_of_a_photograph_beside_torchs_bfloat16(build, photographed, monkeypatch):
    config, params, tiles, truth, torchs_distance = photographed
    jax.clear_caches()  # a build is not part of the settings, so a program of another build would be found in the cache
    monkeypatch.setattr(native, "best_build", lambda: build)
    ours = mp.encode_tiles(params, tiles, config=config, compute=mp.Compute(encoder="native"))
    jax.clear_caches()
    assert distance(ours, truth) <= tolerances.NATIVE_BFLOAT16_RATIO * torchs_distance


def test_gradients_in_bfloat16_go_through_jax(tiny, tiny_tiles):
    params = rounded(tiny.params)

    def loss(params, encoder):
        compute = mp.Compute(dtype="bfloat16", encoder=encoder, attention="blocked")
        return mp.encode_tiles(params, tiny_tiles[:1], config=tiny.config, compute=compute).astype(jnp.float32).var()

    ours, flax = (mp.params.flatten(jax.grad(loss)(params, encoder)) for encoder in ("native", "flax"))
    for path, gradient in flax.items():
        np.testing.assert_array_equal(ours[path], gradient, err_msg=path)
