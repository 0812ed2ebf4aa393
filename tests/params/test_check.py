"""The check of params: what it lists, how much of it, and wrong arguments."""

import string
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st

import multipatch_jax as mp

NAMES = st.dictionaries(st.text("ab", min_size=1, max_size=2), st.tuples(st.integers(1, 2)), max_size=6)


@settings(deadline=None)  # the first example may import the room
@given(NAMES, NAMES)
def test_a_report_has_one_line_for_each_difference(expected, found):
    lines = mp.params.mismatch_report(expected, found).splitlines()
    assert sum(line.startswith(" - ") for line in lines) == len(expected.keys() - found.keys())
    assert sum(line.startswith(" + ") for line in lines) == len(found.keys() - expected.keys())
    others = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
    assert sum(line.startswith(" ~ ") for line in lines) == len(others)
    assert bool(lines) == (expected != found)


def test_a_long_report_is_cut_and_says_by_how_much():
    expected = {f"tower.layers.{i}.weight": (1,) for i in range(471)}
    found = {f"blocks.{i}.{letter}": (1,) for i in range(300) for letter in string.ascii_letters}
    lines = mp.params.mismatch_report(expected, found).splitlines()
    assert len(lines) == 41
    assert lines[-1] == f" ... and {471 + 300 * 52 - 40} more"


def test_a_long_name_or_shape_is_cut():
    report = mp.params.mismatch_report({"a" * 100_000: (1,)}, {"b": (1,) * 100_000})
    assert len(report) < 1000


def test_the_first_of_many_names_still_have_their_likeness():
    expected = {f"model.layers.{i}.weight": (1,) for i in range(471)}
    report = mp.params.mismatch_report(expected, {name.replace("weight", "wieght"): x for name, x in expected.items()})
    assert " - model.layers.0.weight (1,) (found the like-named model.layers.0.wieght)" in report


@pytest.mark.parametrize("config", [None, {}, [], "SmolVLM"])
def test_a_config_that_is_none_is_refused(config, tiny):
    for call in (
        lambda: mp.params.param_shapes(config),
        lambda: mp.params.tensors(config),
        lambda: mp.params.check_parts(config, "vision"),
        lambda: mp.params.check_params(tiny.params, config),
    ):
        with pytest.raises(ValueError, match="config must be a ModelConfig, got"):
            call()


@pytest.mark.parametrize("parts", [(), ("audio",), "audio", None, 5, [["vision"]]])
def test_parts_that_are_no_names_are_refused(parts, tiny):
    for call in (
        lambda: mp.params.param_shapes(tiny.config, parts),
        lambda: mp.params.check_parts(tiny.config, parts),
        lambda: mp.params.check_params(tiny.params, tiny.config, parts),
    ):
        with pytest.raises(ValueError, match="parts must name some of"):
            call()


def test_parts_may_be_any_collection_or_one_name(tiny):
    shapes = mp.params.param_shapes(tiny.config, ("vision",))
    assert mp.params.param_shapes(tiny.config, ["vision"]) == mp.params.param_shapes(tiny.config, "vision") == shapes


@pytest.mark.parametrize("dtype", [">f4", np.int32, bool, np.complex64, str, object])
def test_a_parameter_of_another_kind_is_refused(dtype, tiny):
    """Of a program that is compiled, jit reads an array in the other order of bytes as if it were in this machine's."""
    path = "vision_model/encoder/layers/mlp/fc1/bias"
    flat = mp.params.flatten(jax.tree.map(np.asarray, tiny.params))
    flat[path] = flat[path].astype(dtype)
    for call in (
        lambda params: mp.params.check_params(params, tiny.config),
        lambda params: mp.encode_image(params, np.zeros((8, 8, 3), np.uint8), config=tiny.config),
        lambda params: mp.save_pretrained("nowhere", tiny.config, params),
    ):
        with pytest.raises(ValueError, match=f"floating-point numbers in this machine's order of bytes, got {path} of"):
            call(mp.params.unflatten(flat))


def test_params_may_be_any_mapping(tiny, photo, tmp_path):
    """flax's FrozenDict, for example."""
    params: Any = freeze(mp.from_pretrained(tiny.folder, parts="all")[1])
    inputs = np.zeros((1, 2, 48), np.float32)
    assert mp.encode_image(params, photo, config=tiny.config).shape[1] == 48
    assert mp.text_logits(params, inputs, config=tiny.config).shape == (1, 2, 200)
    params = freeze(mp.params.add_lora(jax.random.key(0), params, rank=2))
    state = mp.train.init_train_state(params, optax.sgd(0.1), trainable="lora", rng=jax.random.key(0))
    assert state.params.keys() == params.keys()
    mp.export_hf(tmp_path / "merged", tiny.config, params)
    mp.save_pretrained(tmp_path / "saved", tiny.config, mp.params.merge_lora(params))
