"""The compiled encoder: every build that runs here, against the same encoder in JAX."""

import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.nn import native, siglip
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.compiled import compiled_code
from tests.helpers.models import MEMBERS, make_model, with_layers
from tests.helpers.parity import check_model, some_tiles
from tests.helpers.processes import python_output

pytestmark = compiled_code
# (patches a side, width, heads, hidden): one patch, odd sides, So400m's heads, many keys.
SHAPES = [(1, 24, 4, 50), (3, 20, 5, 7), (7, 96, 4, 128), (13, 144, 2, 301), (27, 144, 2, 272), (32, 64, 1, 513)]


IN_FLAX = mp.Compute(dtype="float32", attention="blocked", encoder="flax", precision="highest")


def an_encoder(side, width, heads, hidden, layers=2):
    """(module, params, x): all random, norms and biases too, but so small that attention does not magnify roundings."""
    tower = mp.VisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=1,
    )
    module = siglip.Encoder(tower, IN_FLAX)
    x = jax.random.normal(jax.random.key(0), (side * side, width))
    params = module.init(jax.random.key(1), x)["params"]
    keys = iter(jax.random.split(jax.random.key(2), 99))
    return module, jax.tree.map(lambda p: p + 0.05 * jax.random.normal(next(keys), p.shape), params), x


def in_jax(module):
    return lambda layers, x: module.apply({"params": {"layers": layers}}, x)[0]


def compiled(module, build=None):
    tower = module.config
    fixed = (tower.num_attention_heads, tower.layer_norm_eps, in_jax(module), build)
    return lambda layers, x: native.encoder(layers, x, *fixed)


def test_this_machine_has_builds():
    assert native.best_build() in native.builds()
    assert "baseline" in native.builds()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("build", native.builds())
def test_every_build_is_the_encoder(build, shape):
    module, params, x = an_encoder(*shape)
    expected = jax.jit(in_jax(module))(params["layers"], x)
    found = jax.jit(compiled(module, build))(params["layers"], x)
    assert distance(found, expected) <= tolerances.SAME_PROGRAM


@pytest.mark.parametrize(("name", "layers"), [("SmolVLM-256M", 4), ("SmolVLM-2.2B", 1)])
@pytest.mark.parametrize("build", native.builds())
def test_every_build_is_within_the_references_distance(build, name, layers, photo, tmp_path):
    config = with_layers(MEMBERS[name], layers)
    model = make_model(config, tmp_path)
    jax.clear_caches()  # a build is not part of the settings, so a program of another build would be found in the cache
    with mock.patch.object(native, "best_build", return_value=build):
        check_model(model, some_tiles(photo, config, 1), mp.Compute(encoder="native"))
    jax.clear_caches()


@pytest.mark.parametrize("build", native.builds())
def test_scores_that_grow_from_block_to_block_of_keys(build):
    """Sums made relative to a small score must be scaled down when a later block has a much larger one."""
    module, params, x = an_encoder(32, 64, 1, 16, layers=1)
    layer = jax.tree.map(lambda p: p[0], params["layers"])
    strong = 4 * jax.random.normal(jax.random.key(3), (64,))  # a part of every query
    params["layers"]["self_attn"]["q_proj"]["bias"] = strong[None]
    normed = jax.nn.standardize(x) * layer["layer_norm1"]["scale"] + layer["layer_norm1"]["bias"]
    scores = normed @ layer["self_attn"]["k_proj"]["kernel"] @ strong
    x = x[jnp.argsort(scores)]
    assert jnp.ptp(scores) / 8 > 20  # after division by sqrt(64): e-foldings from the first key to the last
    expected = jax.jit(in_jax(module))(params["layers"], x)
    found = jax.jit(compiled(module, build))(params["layers"], x)
    assert distance(found, expected) <= tolerances.SAME_PROGRAM


def test_equal_bits_whatever_runs_beside_it():
    module, params, x = an_encoder(13, 144, 2, 301)
    function = jax.jit(compiled(module))
    pending = [function(params["layers"], x) for _ in range(20)]  # all dispatched before one is read
    runs = [np.asarray(run) for run in pending]
    for run in runs:
        np.testing.assert_array_equal(run, runs[0])


def test_under_vmap_tiles_are_run_one_after_another():
    module, params, x = an_encoder(7, 96, 4, 128)
    many = jnp.stack([x, 2 * x, -x])
    found = jax.jit(jax.vmap(compiled(module), in_axes=(None, 0)))(params["layers"], many)
    for one, tile in zip(found, many, strict=True):
        np.testing.assert_array_equal(one, jax.jit(compiled(module))(params["layers"], tile))


def test_nan_reaches_every_patch():
    module, params, x = an_encoder(7, 96, 4, 128)
    found = jax.jit(compiled(module))(params["layers"], x.at[5, 7].set(jnp.nan))
    assert jnp.isnan(found).all()  # every patch attends to every other


@pytest.mark.parametrize("frozen", ["nothing", "layers", "all but one kernel"])
def test_derivatives_are_those_of_the_encoder_in_jax(frozen):
    """Reverse and forward mode; a frozen input has a symbolic zero for a tangent."""
    module, params, x = an_encoder(7, 96, 4, 128)
    leaves, tree = jax.tree.flatten((params["layers"], x))
    moved = {"nothing": range(len(leaves)), "layers": [len(leaves) - 1], "all but one kernel": [2]}[frozen]

    def loss(function, *changes):
        changed = list(leaves)
        for i, change in zip(moved, changes, strict=True):
            changed[i] = leaves[i] + change
        return (function(*tree.unflatten(changed)) ** 2).mean()

    changes = [jnp.float32(0.01)] * len(moved)
    for derivative in (jax.grad, jax.jacfwd):
        of = [derivative(loss, range(1, 1 + len(moved)))(f, *changes) for f in (in_jax(module), compiled(module))]
        np.testing.assert_allclose(of[1], of[0], rtol=1e-5)


def test_frozen_layers_are_run_by_the_compiled_encoder():
    module, params, x = an_encoder(7, 96, 4, 128)

    def loss(head, x):
        return (compiled(module)(params["layers"], x) @ head).sum()

    of_head, of_x = (str(jax.make_jaxpr(jax.grad(loss, argnums))(jnp.ones(96), x)) for argnums in (0, 1))
    assert "multipatch_encoder" in of_head
    assert "multipatch_encoder" not in of_x


def test_params_of_another_dtype_are_cast(tiny, tiny_tiles):
    params = jax.tree.map(lambda x: x.astype("bfloat16"), tiny.params)
    found, expected = (
        mp.encode_tiles(params, tiny_tiles[:1], config=tiny.config, compute=mp.Compute(dtype="float32", encoder=name))
        for name in ("native", "flax")
    )
    assert distance(found, expected) <= tolerances.SAME_PROGRAM


def test_a_build_that_does_not_load_is_left_out(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    spec = mock.Mock(origin=str(broken))
    with mock.patch.object(native.importlib.util, "find_spec", return_value=spec):
        with pytest.warns(UserWarning, match="encoder avx2 is left out.*install multipatch_jax again"):
            assert native.builds.__wrapped__() == ()


def test_without_a_build_auto_is_what_xla_compiles():
    with mock.patch.object(native, "builds", return_value=()):
        chosen = mp.nn.resolve_compute(mp.Compute(), "float32")
        assert (chosen.encoder, chosen.attention) == ("flax", "blocked")
        with pytest.raises(ValueError, match="with a C\\+\\+ compiler"):
            mp.nn.resolve_compute(mp.Compute(encoder="native"), "float32")


def test_masks_go_through_jax(tiny):
    pixels = jnp.ones((1, 64, 64, 3))
    options = {"config": tiny.config, "compute": mp.Compute(encoder="native")}
    full = np.ones((1, 64, 64), bool)
    masked = mp.vision_features(tiny.params, pixels, pixel_attention_mask=full, **options)
    assert distance(mp.vision_features(tiny.params, pixels, **options), masked) <= tolerances.SAME_PROGRAM


def test_importing_loads_no_build():
    code = "import sys, multipatch_jax; print(any('_encoder_' in line for line in open('/proc/self/maps')))"
    if not sys.platform.startswith("linux"):
        pytest.skip("what a process has mapped is read from /proc, which only Linux has")
    assert python_output("-c", code).strip() == "False"
