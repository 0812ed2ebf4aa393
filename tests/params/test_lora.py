"""LoRA: new factors change nothing, training changes only them, and merging gives the model that was trained."""

import re

import jax
import numpy as np
import optax
import pytest

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.training import distill

KERNELS = "(q_proj|v_proj|fc1)/kernel$"


@pytest.fixture(scope="module")
def batch(tiny, tiny_tiles):
    teacher = np.random.default_rng(5).normal(size=(4, 4, 48)).astype(np.float32)
    return {"tiles": tiny_tiles[:4], "teacher": teacher}


@pytest.fixture(scope="module")
def trained(tiny, batch):
    """The state after four steps, and the loss at each."""
    params = mp.params.add_lora(jax.random.key(1), tiny.params, kernels=KERNELS, rank=2)
    optimizer = optax.adam(1e-2)
    state = mp.train.init_train_state(params, optimizer, trainable="lora", rng=jax.random.key(0))
    step = mp.train.make_train_step(distill, optimizer, config=tiny.config, trainable="lora")
    history = []
    for _ in range(4):
        state, metrics = step(state, batch)
        history.append(float(metrics["loss"]))
    return state, history


def test_new_factors_change_nothing(tiny):
    params = mp.params.add_lora(jax.random.key(1), tiny.params, kernels=KERNELS, rank=2)
    jax.tree.map(np.testing.assert_array_equal, mp.params.merge_lora(params), tiny.params)
    flat = mp.params.flatten(params["lora"])
    stem = "vision_model/encoder/layers/mlp/fc1/kernel"
    assert flat[f"{stem}/a"].shape == (2, 96, 2)
    assert flat[f"{stem}/b"].shape == (2, 2, 128)
    assert np.any(flat[f"{stem}/a"][0] != flat[f"{stem}/a"][1])  # each layer has its own
    assert len(flat) == 6


def test_only_the_factors_are_trained(tiny, trained):
    state, history = trained
    assert history[-1] < history[0]
    for part in ("vision_model", "connector"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], tiny.params[part])
    factors = sum(x.nbytes for x in jax.tree.leaves(state.params["lora"]))
    assert sum(x.nbytes for x in jax.tree.leaves(state.opt_state)) == 2 * factors + 4


def test_the_merged_model_is_the_trained_one(tiny, batch, trained, tmp_path):
    """Exported and loaded back, it has the loss that the next step would have shown."""
    state, _ = trained
    merged = mp.params.merge_lora(state.params)
    changed = {p for p, x in mp.params.flatten(merged).items() if np.any(x != mp.params.flatten(tiny.params)[p])}
    assert changed == {path for path in mp.params.flatten(tiny.params) if re.search(KERNELS, path)}
    mp.export_hf(tmp_path / "model", tiny.config, state.params, base=tiny.folder)  # export merges
    config, loaded = mp.from_pretrained(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, loaded, merged)
    loss = mp.train.distillation_loss(mp.encode_tiles(loaded, batch["tiles"], config=config), batch["teacher"])
    step = mp.train.make_train_step(distill, optax.adam(1e-2), config=tiny.config, trainable="lora")
    copy = jax.tree.map(lambda x: x.copy(), state)  # a step donates its state
    _, metrics = step(copy, batch)
    assert distance(loss, metrics["loss"]) <= tolerances.SAME_PROGRAM


def test_merging_keeps_the_kernels_dtype(tiny, trained):
    half = jax.tree.map(lambda x: x.astype("bfloat16"), tiny.params)
    merged = mp.params.merge_lora(half | {"lora": trained[0].params["lora"]})
    assert {x.dtype.name for x in jax.tree.leaves(merged)} == {"bfloat16"}


def test_params_that_are_not_merged_are_refused(tiny, tiny_tiles, trained, tmp_path):
    params = trained[0].params
    for use in (
        lambda: mp.encode_tiles(params, tiny_tiles, config=tiny.config),
        lambda: mp.save_pretrained(tmp_path / "model", tiny.config, params),
    ):
        with pytest.raises(ValueError, match=r"not merged yet: call merge_lora\(params\) first"):
            use()


def test_a_regex_that_names_no_kernel_is_refused(tiny):
    with pytest.raises(ValueError, match="kernels='qproj' is found in no kernel's path; there are connector"):
        mp.params.add_lora(jax.random.key(0), tiny.params, kernels="qproj")


def test_factors_that_are_there_already_are_not_overwritten(tiny):
    params = mp.params.add_lora(jax.random.key(0), tiny.params, rank=2)
    with pytest.raises(ValueError, match=r"not merged yet: call merge_lora\(params\) first"):
        mp.params.add_lora(jax.random.key(0), params, kernels="fc1", rank=2)


@pytest.mark.parametrize("rank", [0, 97])
def test_a_rank_beyond_the_kernels_sides_is_refused(rank, tiny):
    with pytest.raises(ValueError, match=f"rank must be .* got {rank}"):
        mp.params.add_lora(jax.random.key(0), tiny.params, rank=rank)
