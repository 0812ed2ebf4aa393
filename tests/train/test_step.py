"""The step: what is trained and what is not, its arithmetic, and the batches that it refuses."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import multipatch_jax as mp
from multipatch_jax.nn import KERNELS
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.training import distill, gradients, train


@pytest.fixture(scope="module")
def batch(tiny, tiny_tiles):
    """Eight tiles and a teacher's tokens for them."""
    teacher = np.random.default_rng(5).normal(size=(8, 4, 48)).astype(np.float32)
    return {"tiles": tiny_tiles[:8], "teacher": teacher}


def copied(tree):
    return jax.tree.map(np.array, tree)


def kernel(params):
    return np.asarray(params["connector"]["modality_projection"]["proj"]["kernel"])


# ---------------------------------------------------------------------------------------------------------------------
# Frozen params: no cost, no change.


def size(tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_a_frozen_tower_has_no_gradient_and_no_optimiser_state(tiny, batch):
    optimizer = optax.adam(1e-4)
    before = copied(tiny.params)
    state, history = train(tiny, batch, optimizer, steps=5)
    assert history[-1]["loss"] < history[0]["loss"]
    assert size(state.opt_state) == 2 * size(tiny.params["connector"]) + 4  # Adam's two moments, and its count
    for path, value in mp.params.flatten(before["vision_model"]).items():
        assert np.array_equal(value, mp.params.flatten(state.params["vision_model"])[path])
    jax.tree.map(np.testing.assert_array_equal, before, tiny.params)  # the model's own were not donated
    assert not np.array_equal(before["connector"]["modality_projection"]["proj"]["kernel"], kernel(state.params))


def flops_of(lowered: jax.stages.Lowered) -> float:
    analysis = lowered.compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def test_a_frozen_tower_is_not_differentiated(tiny, batch):
    """The compiled step does the forward pass and the connector's backward pass, and no more."""
    flops = {}
    for trainable in ("connector", "vision"):
        state = mp.train.init_train_state(tiny.params, optax.sgd(0.1), trainable=trainable, rng=jax.random.key(0))
        step = mp.train.make_train_step(distill, optax.sgd(0.1), config=tiny.config, trainable=trainable)
        flops[trainable] = flops_of(jax.jit(step).lower(state, batch))
    encode = jax.jit(functools.partial(mp.encode_tiles, config=tiny.config))
    forward = flops_of(encode.lower(tiny.params, batch["tiles"]))
    connector = 2 * 3 * 8 * 4 * 96 * 16 * 48  # forward and backward of the projection of 8 tiles, loops counted once
    assert flops["connector"] < forward + connector
    assert flops["vision"] > 2 * forward


def test_a_step_is_compiled_with_the_options_of_its_kernel(tiny, batch, monkeypatch):
    """XLA refuses an option that it does not know, so compiling with it is seen."""
    with_option = dataclasses.replace(KERNELS["plain"], compiler_options=(("no_such_option", True),))
    monkeypatch.setitem(KERNELS, "plain", with_option)
    optimizer, compute = optax.sgd(0.1), mp.Compute(attention="plain")
    state = mp.train.init_train_state(tiny.params, optimizer, rng=jax.random.key(0))
    step = mp.train.make_train_step(distill, optimizer, config=tiny.config, compute=compute)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        step(state, batch)
    _, metrics = jax.jit(step)(state, batch)  # part of the user's program, which has the user's options
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("vision", r"vision_model/"),
        (r"layer_norm\d|post_layernorm", r"layer_?norm"),
    ],
)
def test_only_what_is_named_changes(trainable, expected, tiny, batch):
    before = mp.params.flatten(copied(tiny.params))
    state, _ = train(tiny, batch, optax.adam(1e-3), trainable=trainable)
    for path, value in mp.params.flatten(state.params).items():
        assert np.array_equal(value, before[path]) != bool(re.search(expected, path)), path


def test_a_regex_that_trains_nothing_is_refused(tiny, batch):
    with pytest.raises(ValueError, match=r"trainable='conector' is found in no path of .*, so nothing would be"):
        mp.train.init_train_state(tiny.params, optax.sgd(0.1), trainable="conector", rng=jax.random.key(0))
    state = mp.train.init_train_state(tiny.params, optax.sgd(0.1), rng=jax.random.key(0))
    with pytest.raises(ValueError, match="nothing would be trained"):
        mp.train.make_train_step(distill, optax.sgd(0.1), config=tiny.config, trainable="conector")(state, batch)


def test_a_state_of_another_optimizer_or_trainable_is_refused(tiny, batch):
    state = mp.train.init_train_state(tiny.params, optax.adam(0.1), rng=jax.random.key(0))
    for optimizer, trainable in ((optax.sgd(0.1), "connector"), (optax.adam(0.1), "vision")):
        step = mp.train.make_train_step(distill, optimizer, config=tiny.config, trainable=trainable)
        with pytest.raises(ValueError, match="same optimizer and the same trainable"):
            step(state, batch)


def test_masters_that_are_not_float32_are_refused(tiny, batch):
    """A state made for another `trainable`. Plain gradient descent has no state by which to notice it."""
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    state = mp.train.init_train_state(halves, optax.sgd(0.1), rng=jax.random.key(0))
    with pytest.raises(ValueError, match=r"trained params must be float32, got vision_model/.* in bfloat16"):
        mp.train.make_train_step(distill, optax.sgd(0.1), config=tiny.config, trainable="vision")(state, batch)


@pytest.mark.parametrize("axes", [("data", "fsdp", "tensor"), ("x", "y", "z")])
def test_a_mesh_of_another_make_is_refused(axes, tiny):
    """Of other axes, or of axes of type Explicit, which is `jax.make_mesh`'s default."""
    mesh, optimizer = jax.make_mesh((1, 1, 1), axes), optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"mesh must be one of make_mesh, .*, got \('"):
        mp.train.make_train_step(distill, optimizer, config=tiny.config, mesh=mesh)
    with pytest.raises(ValueError, match="mesh must be one of make_mesh"):
        mp.train.init_train_state(tiny.params, optimizer, rng=jax.random.key(0), mesh=mesh)


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic of the step.


def sum_of_squares(params, batch, rng, encode):
    """A loss of every parameter that is quick to compile."""
    return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def whole(tiny, batch):
    """The gradients of the whole batch at once."""
    return gradients(tiny, batch)


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, batch, whole):
    pieces = gradients(tiny, batch, accumulate=4)
    assert distance(kernel(pieces), kernel(whole)) <= tolerances.MESH


def test_clipping_is_by_the_global_norm(tiny, batch, whole):
    """At rate 1 a step of gradient descent is then as long as the limit; the metric is the norm before clipping."""
    before = copied(tiny.params)
    state, (metrics,) = train(tiny, batch, optax.sgd(1.0), max_norm=0.01)
    assert metrics["grad_norm"] == pytest.approx(float(np.linalg.norm(kernel(whole))), rel=1e-5)
    assert metrics["grad_norm"] > 0.01
    assert np.linalg.norm(kernel(state.params) - kernel(before)) == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_computes_with_float32_masters(tiny, batch, whole):
    """Masters stay float32 and move by less than bfloat16 resolves; the frozen tower may be bfloat16."""
    compute = mp.Compute(dtype="bfloat16")
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    seen = []

    def loss(params, batch, rng, encode):
        tokens = encode(params, batch["tiles"])
        seen.append(tokens.dtype)
        return mp.train.distillation_loss(tokens, batch["teacher"])

    state, _ = train(tiny, batch, optax.sgd(1e-5), compute=compute, params=halves, loss_fn=loss, steps=3)
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert kernel(state.params).dtype == np.float32
    assert state.params["vision_model"]["post_layernorm"]["scale"].dtype == jnp.bfloat16
    start = kernel(halves).astype(np.float32)
    moved = kernel(state.params) - start
    assert np.median(np.abs(moved[moved != 0]) / np.abs(start[moved != 0])) < 2**-9  # bfloat16 would lose it
    assert np.mean(moved != 0) > 0.9
    rounded = gradients(tiny, batch, compute=compute)
    assert kernel(rounded).dtype == np.float32
    assert 1e-4 < distance(kernel(rounded), kernel(whole)) < 2e-2


def test_the_loss_gets_a_key_of_its_own_every_step(tiny, batch):
    def noise(params, batch, rng, encode):
        return jax.random.uniform(rng) + 0 * sum_of_squares(params, batch, rng, encode)

    _, history = train(tiny, batch, optax.sgd(0.1), loss_fn=noise, steps=3)
    assert len({metrics["loss"] for metrics in history}) == 3
    assert train(tiny, batch, optax.sgd(0.1), loss_fn=noise, steps=3)[1] == history


def test_steps_compile_once_and_donate(tiny, batch):
    optimizer = optax.adam(1e-3)
    state = mp.train.init_train_state(tiny.params, optimizer, rng=jax.random.key(0))
    step = mp.train.make_train_step(distill, optimizer, config=tiny.config)
    first, _ = step(state, batch)
    with mp.encode.forbid_compilations():
        step(first, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.opt_state, state.params["connector"])))
    assert not any(x.is_deleted() for x in jax.tree.leaves(state.params["vision_model"]))


def test_a_state_that_was_used_is_refused(tiny, batch):
    optimizer = optax.adam(1e-4)
    step = mp.train.make_train_step(distill, optimizer, config=tiny.config)
    state = mp.train.init_train_state(tiny.params, optimizer, rng=jax.random.key(0))
    step(state, batch)
    with pytest.raises(ValueError, match="takes over the arrays of its state: go on from the state that the last step"):
        step(state, batch)


def test_an_optimiser_whose_state_begins_with_the_params_themselves(tiny, batch):
    """Such an array is in the state twice, and must be donated once."""
    optimizer = optax.contrib.prodigy(1.0)  # its state holds the first params
    state, _ = train(tiny, batch, optimizer, steps=2)
    assert np.all(np.isfinite(kernel(state.params)))


def test_schedules_are_optaxs(tiny, batch):
    """Warm-up and cosine, and weight decay for kernels only: a bias of a stack of layers has two axes."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, warmup_steps=2, decay_steps=4)
    before = copied(tiny.params)

    def nothing(params, batch, rng, encode):
        return 0.0 * sum_of_squares(params, batch, rng, encode)

    optimizer = optax.adamw(schedule, weight_decay=0.5, mask=mp.params.kernel_mask)
    state, _ = train(tiny, batch, optimizer, loss_fn=nothing, trainable="all", steps=3)
    shrunk = (1 - 0.5 * 0.0) * (1 - 0.5 * 0.5e-2) * (1 - 0.5 * 1e-2)
    after = mp.params.flatten(state.params)
    for path, value in mp.params.flatten(before).items():
        factor = shrunk if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(after[path], value * factor, rtol=1e-6, err_msg=path)


# ---------------------------------------------------------------------------------------------------------------------
# Batches that are refused.


@pytest.mark.parametrize("change", [lambda x: np.float32(x / 255), lambda x: x[:, :32]])
def test_what_is_not_tiles_is_refused(change, tiny, batch):
    with pytest.raises(ValueError, match=r"tiles must be uint8 of shape \(N, 64, 64, 3\), got "):
        train(tiny, batch | {"tiles": change(batch["tiles"])}, optax.sgd(0.1))


@pytest.mark.parametrize("accumulate", [3, 16])
def test_a_batch_that_does_not_divide_into_pieces_is_refused(accumulate, tiny, batch):
    with pytest.raises(ValueError, match=f"divide over accumulate={accumulate} pieces, got 8 rows"):
        train(tiny, batch, optax.sgd(0.1), accumulate=accumulate)


def test_a_batch_of_unequal_arrays_is_refused(tiny, batch):
    with pytest.raises(ValueError, match="one first axis, got sizes \\['5', '8'\\]"):
        train(tiny, batch | {"teacher": batch["teacher"][:5]}, optax.sgd(0.1))


@pytest.mark.parametrize("accumulate", [0, 1.5, True])
def test_accumulate_must_be_a_number_of_pieces(accumulate, tiny):
    with pytest.raises(ValueError, match="positive number of pieces"):
        mp.train.make_train_step(distill, optax.sgd(0.1), config=tiny.config, accumulate=accumulate)
