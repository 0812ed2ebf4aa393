"""Every kernel against plain, and plain against the reference's own function: values, gradients, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

from multipatch_jax.nn.attention import KERNELS, attention
from multipatch_reference import distance
from tests.helpers import tolerances

SHAPES = [(1024, 12, 64), (729, 16, 72), (676, 16, 72), (64, 4, 24), (1, 2, 8), (257, 3, 16)]
RUNNABLE = [
    name for name, row in KERNELS.items() if {"cpu", "tpu"} & set(row.platforms)
]  # on any machine: the TPU's kernel is interpreted
OTHERS = [name for name in RUNNABLE if name != "plain"]


@pytest.fixture(autouse=True)
def kernels_are_interpreted():
    with pltpu.force_tpu_interpret_mode():
        yield


def random_qkv(shape, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape) * 1.5, dtype) for _ in range(3)]


def some_mask(patches):
    mask = np.arange(patches) % 5 != 3
    mask[0] = True
    return jnp.asarray(mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", RUNNABLE)
def test_equals_the_reference(implementation, shape, masked):
    q, k, v = random_qkv(shape)
    mask = some_mask(shape[0]) if masked else None
    ours = attention(q, k, v, mask=mask, kernel=implementation, precision="highest")
    torch_mask = torch.from_numpy(np.array(mask))[None, None, None] if masked else None

    def reference(dtype):
        tensors = [torch.from_numpy(np.array(x)).to(dtype).transpose(0, 1)[None] for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=torch_mask)
        return out[0].transpose(0, 1)

    theirs, truth = reference(torch.float32), reference(torch.float64)
    assert distance(ours, truth) <= max(tolerances.FLOAT32_RATIO * distance(theirs, truth), tolerances.SAME_PROGRAM)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", OTHERS)
def test_gradients_equal_those_of_plain(implementation, shape, masked):
    mask = some_mask(shape[0]) if masked else None
    weight = random_qkv(shape, seed=1)[0]

    def loss(qkv, implementation):
        out = attention(*qkv, mask=mask, kernel=implementation, precision="highest")
        return (out * weight).sum()

    ours = jax.grad(loss)(random_qkv(shape), implementation)
    plain = jax.grad(loss)(random_qkv(shape), "plain")
    # With one patch the gradients of q and k are 0, up to the rounding of each kernel.
    largest = max(float(jnp.abs(x).max()) for x in plain)
    for mine, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("implementation", RUNNABLE)
def test_masked_keys_have_no_influence_at_all(implementation):
    q, k, v = random_qkv((300, 3, 16))
    mask = some_mask(300)
    spoiled = [jnp.where(mask[:, None, None], x, 1e4) for x in (k, v)]
    clean = attention(q, k, v, mask=mask, kernel=implementation)
    np.testing.assert_array_equal(attention(q, *spoiled, mask=mask, kernel=implementation), clean)


@pytest.mark.parametrize("implementation", RUNNABLE)
def test_a_tile_without_a_valid_patch_is_finite(implementation):
    q, k, v = random_qkv((300, 3, 16))
    out = attention(q, k, v, mask=jnp.zeros(300, bool), kernel=implementation)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("implementation", OTHERS)
def test_bfloat16_is_as_good_as_plain(implementation):
    exact = attention(*random_qkv((729, 4, 72)), precision="highest")
    qkv = random_qkv((729, 4, 72), jnp.bfloat16)
    mine, plain = (attention(*qkv, kernel=name) for name in (implementation, "plain"))
    assert mine.dtype == jnp.bfloat16
    assert distance(mine, exact) <= tolerances.BFLOAT16_RATIO * distance(plain, exact)


@pytest.mark.parametrize("implementation", OTHERS)
def test_tiles_are_mapped_over_with_their_own_masks(implementation):
    tiles = [jnp.stack(x) for x in zip(random_qkv((257, 3, 16)), random_qkv((257, 3, 16), seed=1), strict=True)]
    masks = jnp.stack([some_mask(257), ~some_mask(257)])

    def one(q, k, v, mask):
        return attention(q, k, v, mask=mask, kernel=implementation)

    q, k, v = tiles
    one_by_one = [one(q[i], k[i], v[i], masks[i]) for i in range(2)]
    assert distance(jax.vmap(one)(q, k, v, masks), jnp.stack(one_by_one)) <= tolerances.SAME_PROGRAM


def test_cudnn_is_plain_where_there_is_a_mask():
    mask = some_mask(300)
    qkv = random_qkv((300, 3, 16), jnp.bfloat16)
    cudnn, plain = (attention(*qkv, mask=mask, kernel=name) for name in ("cudnn", "plain"))
    np.testing.assert_array_equal(cudnn, plain)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match=r"kernel must be one of .* got 'flash'"):
        attention(*random_qkv((4, 1, 4)), kernel="flash")
