"""What is trained and what is not, and the arithmetic of the step."""

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
from benchmarks import contrastive
from multipatch_jax.train import losses
from tests import tolerances
from tests.test_parity import distance
from tests.test_project import README


def squares(params, batch, rng, encode):
    return losses.distillation_loss(encode(params, batch["tiles"]), batch["teacher"])


@pytest.fixture(scope="module")
def batch(tiny, tiny_tiles):
    """Eight tiles and a teacher's tokens for them."""
    teacher = np.random.default_rng(5).normal(size=(8, 4, 48)).astype(np.float32)
    return {"tiles": tiny_tiles[:8], "teacher": teacher}


def copied(tree):
    return jax.tree.map(np.array, tree)


def run(model, batch, optimizer, *, steps=1, loss_fn=squares, trainable="connector", params=None, **options):
    """(state, metrics of every step) from the model's params."""
    params, mesh, options = params or model.params, options.get("mesh"), {"config": model.config} | options
    state = mp.train.init_train_state(params, optimizer, trainable=trainable, rng=jax.random.key(0), mesh=mesh)
    step = mp.train.make_train_step(loss_fn, optimizer, trainable=trainable, **options)
    history = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def gradients(model, batch, **options):
    """The gradients of one step: an optimiser that remembers them, and changes nothing."""
    state, _ = run(model, batch, optax.chain(optax.trace(0.0), optax.scale(0.0)), **options)
    return jax.tree.map(np.asarray, state.opt_state[0].trace)


# ---------------------------------------------------------------------------------------------------------------------
# What is not trained costs nothing and stays.


def size(tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_a_frozen_tower_has_no_gradient_and_no_optimiser_state(tiny, batch):
    optimizer = optax.adam(1e-4)
    before = copied(tiny.params)
    state, history = run(tiny, batch, optimizer, steps=5)
    assert history[-1]["loss"] < history[0]["loss"]
    assert size(state.opt_state) == 2 * size(tiny.params["connector"]) + 4  # two moments, and a count
    for path, value in mp.params.flatten(before["vision_model"]).items():
        assert np.array_equal(value, mp.params.flatten(state.params["vision_model"])[path])
    jax.tree.map(np.testing.assert_array_equal, before, tiny.params)  # ours were not donated
    assert not np.array_equal(before["connector"]["modality_projection"]["proj"]["kernel"], kernel(state.params))


def kernel(params):
    return np.asarray(params["connector"]["modality_projection"]["proj"]["kernel"])


def test_a_frozen_tower_is_not_differentiated(tiny, batch):
    """The compiled step does the work of the forward pass and the connector's backward, and keeps no activations."""
    flops = {}
    for trainable in ("connector", "vision"):
        state = mp.train.init_train_state(tiny.params, optax.sgd(0.1), trainable=trainable, rng=jax.random.key(0))
        step = mp.train.make_train_step(squares, optax.sgd(0.1), config=tiny.config, trainable=trainable)
        flops[trainable] = jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]
    encode = jax.jit(functools.partial(mp.encode_tiles, config=tiny.config))
    forward = encode.lower(tiny.params, batch["tiles"]).compile()
    connector = 2 * 3 * 8 * 4 * 96 * 16 * 48  # forward and backward of the projection of 8 tiles, loops counted once
    assert flops["connector"] < forward.cost_analysis()["flops"] + connector
    assert flops["vision"] > 2 * forward.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("vision", r"vision_model/"),
        (r"layer_norm\d|post_layernorm", r"layer_?norm"),
    ],
)
def test_only_what_is_named_changes(trainable, expected, tiny, batch):
    before = mp.params.flatten(copied(tiny.params))
    state, _ = run(tiny, batch, optax.adam(1e-3), trainable=trainable)
    for path, value in mp.params.flatten(state.params).items():
        assert np.array_equal(value, before[path]) != bool(re.search(expected, path)), path


def test_a_regex_that_trains_nothing(tiny, batch):
    with pytest.raises(ValueError, match=r"trainable='conector' is found in no path of .*, so nothing would be"):
        mp.train.init_train_state(tiny.params, optax.sgd(0.1), trainable="conector", rng=jax.random.key(0))
    state = mp.train.init_train_state(tiny.params, optax.sgd(0.1), rng=jax.random.key(0))
    with pytest.raises(ValueError, match="nothing would be trained"):
        mp.train.make_train_step(squares, optax.sgd(0.1), config=tiny.config, trainable="conector")(state, batch)


def test_state_of_another_optimizer_or_choice(tiny, batch):
    state = mp.train.init_train_state(tiny.params, optax.adam(0.1), rng=jax.random.key(0))
    for optimizer, trainable in ((optax.sgd(0.1), "connector"), (optax.adam(0.1), "vision")):
        step = mp.train.make_train_step(squares, optimizer, config=tiny.config, trainable=trainable)
        with pytest.raises(ValueError, match="same optimizer and the same trainable"):
            step(state, batch)


def test_masters_that_are_not_float32_are_refused(tiny, batch):
    """Of a state that was made for another choice; plain descent has no state that would tell."""
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    state = mp.train.init_train_state(halves, optax.sgd(0.1), rng=jax.random.key(0))
    with pytest.raises(ValueError, match=r"trained params must be float32, got vision_model/.* in bfloat16"):
        mp.train.make_train_step(squares, optax.sgd(0.1), config=tiny.config, trainable="vision")(state, batch)


@pytest.mark.parametrize("axes", [("data", "fsdp", "tensor"), ("x", "y", "z")])
def test_a_mesh_of_another_make_is_refused(axes, tiny):
    """Of other axes, or of Explicit ones, `jax.make_mesh`'s default."""
    mesh, optimizer = jax.make_mesh((1, 1, 1), axes), optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"mesh must be one of make_mesh, .*, got \('"):
        mp.train.make_train_step(squares, optimizer, config=tiny.config, mesh=mesh)
    with pytest.raises(ValueError, match="mesh must be one of make_mesh"):
        mp.train.init_train_state(tiny.params, optimizer, rng=jax.random.key(0), mesh=mesh)


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic of the step.


def sum_of_squares(params, batch, rng, encode):
    """A loss of every parameter, and nothing to compile."""
    return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def whole(tiny, batch):
    """Gradients of the batch in one piece."""
    return gradients(tiny, batch)


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, batch, whole):
    pieces = gradients(tiny, batch, accumulate=4)
    assert distance(kernel(pieces), kernel(whole)) <= tolerances.MESH


def test_clipping_is_by_the_global_norm(tiny, batch, whole):
    """A step of gradient descent at rate 1 is then as long as the limit; the metric is the norm before."""
    before = copied(tiny.params)
    state, (metrics,) = run(tiny, batch, optax.sgd(1.0), max_norm=0.01)
    assert metrics["grad_norm"] == pytest.approx(float(np.linalg.norm(kernel(whole))), rel=1e-5)
    assert metrics["grad_norm"] > 0.01
    assert np.linalg.norm(kernel(state.params) - kernel(before)) == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_computes_with_float32_masters(tiny, batch, whole):
    """Masters move by less than a bfloat16 can show, and stay float32; the frozen tower may be held in bfloat16."""
    config = dataclasses.replace(tiny.config, dtype="bfloat16")
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    seen = []

    def loss(params, batch, rng, encode):
        tokens = encode(params, batch["tiles"])
        seen.append(tokens.dtype)
        return losses.distillation_loss(tokens, batch["teacher"])

    state, _ = run(tiny, batch, optax.sgd(1e-5), config=config, params=halves, loss_fn=loss, steps=3)
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert kernel(state.params).dtype == np.float32
    assert state.params["vision_model"]["post_layernorm"]["scale"].dtype == jnp.bfloat16
    start = kernel(halves).astype(np.float32)
    moved = kernel(state.params) - start
    assert np.median(np.abs(moved[moved != 0]) / np.abs(start[moved != 0])) < 2**-9  # lost in bfloat16
    assert np.mean(moved != 0) > 0.9
    rounded = gradients(tiny, batch, config=config)
    assert kernel(rounded).dtype == np.float32
    assert 1e-4 < distance(kernel(rounded), kernel(whole)) < 2e-2


def test_the_loss_gets_a_key_of_its_own_every_step(tiny, batch):
    def noise(params, batch, rng, encode):
        return jax.random.uniform(rng) + 0 * sum_of_squares(params, batch, rng, encode)

    _, history = run(tiny, batch, optax.sgd(0.1), loss_fn=noise, steps=3)
    assert len({metrics["loss"] for metrics in history}) == 3
    assert run(tiny, batch, optax.sgd(0.1), loss_fn=noise, steps=3)[1] == history


def test_steps_compile_once_and_donate(tiny, batch):
    optimizer = optax.adam(1e-3)
    state = mp.train.init_train_state(tiny.params, optimizer, rng=jax.random.key(0))
    step = mp.train.make_train_step(squares, optimizer, config=tiny.config)
    first, _ = step(state, batch)
    with mp.encode.forbid_compilations():
        step(first, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.opt_state, state.params["connector"])))
    assert not any(x.is_deleted() for x in jax.tree.leaves(state.params["vision_model"]))


def test_an_optimiser_whose_state_begins_with_the_params_themselves(tiny, batch):
    """Each array is donated once."""
    optimizer = optax.contrib.prodigy(1.0)  # remembers where the params began
    state, _ = run(tiny, batch, optimizer, steps=2)
    assert np.all(np.isfinite(kernel(state.params)))


@pytest.mark.parametrize("change", [lambda x: np.float32(x / 255), lambda x: x[:, :32]])
def test_tiles_that_are_none(change, tiny, batch):
    with pytest.raises(ValueError, match=r"tiles must be uint8 of shape \(N, 64, 64, 3\), got "):
        run(tiny, batch | {"tiles": change(batch["tiles"])}, optax.sgd(0.1))


@pytest.mark.parametrize("accumulate", [3, 16])
def test_a_batch_that_does_not_divide(accumulate, tiny, batch):
    with pytest.raises(ValueError, match=f"divide over accumulate={accumulate} pieces, got 8 rows"):
        run(tiny, batch, optax.sgd(0.1), accumulate=accumulate)


def test_a_batch_of_unequal_arrays(tiny, batch):
    with pytest.raises(ValueError, match="one first axis, got sizes \\['5', '8'\\]"):
        run(tiny, batch | {"teacher": batch["teacher"][:5]}, optax.sgd(0.1))


@pytest.mark.parametrize("accumulate", [0, 1.5, True])
def test_accumulate_must_be_a_number_of_pieces(accumulate, tiny):
    with pytest.raises(ValueError, match="positive number of pieces"):
        mp.train.make_train_step(squares, optax.sgd(0.1), config=tiny.config, accumulate=accumulate)


def test_schedules_are_optaxs(tiny, batch):
    """Warm-up and cosine, and weight decay for kernels only: a bias of a stack of layers has two axes."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, warmup_steps=2, decay_steps=4)
    before = copied(tiny.params)

    def nothing(params, batch, rng, encode):
        return 0.0 * sum_of_squares(params, batch, rng, encode)

    optimizer = optax.adamw(schedule, weight_decay=0.5, mask=mp.params.kernel_mask)
    state, _ = run(tiny, batch, optimizer, loss_fn=nothing, trainable="all", steps=3)
    shrunk = (1 - 0.5 * 0.0) * (1 - 0.5 * 0.5e-2) * (1 - 0.5 * 1e-2)
    after = mp.params.flatten(state.params)
    for path, value in mp.params.flatten(before).items():
        factor = shrunk if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(after[path], value * factor, rtol=1e-6, err_msg=path)


# ---------------------------------------------------------------------------------------------------------------------
# Contrastive training learns what it is meant to.


HELD_OUT = ("held-out scans", "held-out scans, unseen numbers")


def test_contrastive_training_matches_held_out_pairs():
    """Half of the example's length gives 54 % and 27 % (seed 0), chance being 1 %."""
    result = contrastive.run(seed=0, steps=200)
    assert all(result[f"{task}, before"] < 0.05 for task in HELD_OUT)
    assert all(result[task] > 0.15 for task in HELD_OUT)
    assert result["last loss"] < result["first loss"] / 4


@pytest.mark.slow
def test_the_contrastive_example_is_as_good_as_the_readme_says():
    result = contrastive.run(seed=0)
    said = re.search(r"for (\d+) % of images, and for (\d+) %", README)
    assert [result[task] for task in HELD_OUT] == pytest.approx([int(n) / 100 for n in said.groups()], abs=0.04)


# ---------------------------------------------------------------------------------------------------------------------


def test_the_readmes_examples_run(tiny, photo, tmp_path, monkeypatch):
    """Both, with a small model and few steps; the new connector's folder loads."""
    section = README.split("## Training")[1].split("\n## ")[0]
    connector, tower = re.findall(r"```python\n(.+?)```", section, re.S)
    monkeypatch.chdir(tmp_path)
    tiles = mp.tile_image_host(photo, tiny.config.tiling)[:9]
    names = {"tiles": tiles, "teacher": np.ones((9, 4, 1024), np.float32), "num_steps": 20}
    code = connector.replace("HuggingFaceTB/SmolVLM-256M-Instruct", str(tiny.folder)) + tower
    exec(compile(code, "README.md", "exec"), names)
    config, params = mp.from_pretrained("new-connector")
    assert mp.encode_tiles(params, tiles[:2], config=config).shape == (2, 4, 1024)
    assert np.isfinite(names["metrics"]["loss"])
