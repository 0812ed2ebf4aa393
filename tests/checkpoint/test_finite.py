"""NaN, infinity, and numbers that the dtype asked for cannot hold: never in silence."""

import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import multipatch_jax as mp
from multipatch_jax.checkpoint.finite import check_numbers, greatest
from tests.helpers.checkpoints import change_tensors

NAME = "model.vision_model.encoder.layers.1.mlp.fc2.weight"


def spoiled(folder, number, dtype=np.float32):
    """The tiny model in `dtype`, with one number replaced."""

    def spoil(tensors):
        tensors.update((name, value.astype(dtype)) for name, value in list(tensors.items()))
        tensors[NAME][3, 5] = number

    change_tensors(folder, spoil)
    return folder


@pytest.mark.parametrize("number", [70000.0, -65520.0, 1e30])
def test_a_number_beyond_float16_is_refused_by_its_tensors_name(folder, number):
    spoiled(folder, number)
    with pytest.raises(
        mp.CheckpointError, match=rf"model\.safetensors: {NAME} holds a number of size .* infinite in float16: pass dty"
    ):
        mp.from_pretrained(folder, dtype="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mp.from_pretrained(folder, dtype="bfloat16")
        mp.from_pretrained(folder)


def test_what_rounds_to_float16s_largest_number_is_taken(folder):
    _, params = mp.from_pretrained(spoiled(folder, 65519.0), dtype="float16")
    assert max(float(abs(x).max()) for x in jax.tree.leaves(params)) == 65504


def test_float32s_largest_number_is_refused_in_bfloat16(folder):
    spoiled(folder, np.finfo(np.float32).max)
    with pytest.raises(mp.CheckpointError, match="infinite in bfloat16: pass dtype float32, or None"):
        mp.from_pretrained(folder, dtype="bfloat16")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(("number", "words"), [(np.inf, "Inf"), (-np.inf, "Inf"), (np.nan, "NaN"), (-np.nan, "NaN")])
def test_nan_and_infinity_are_warned_of_by_their_tensors_name(folder, dtype, number, words):
    spoiled(folder, number, dtype)
    with pytest.warns(UserWarning, match=rf"model\.safetensors: {NAME} holds {words}\.") as caught:
        mp.from_pretrained(folder)
    assert len(caught) == 1


def test_a_number_too_large_is_found_beside_nan_and_infinity():
    array = np.array([np.nan, np.inf, 70000], np.float32)
    with pytest.warns(UserWarning, match="x holds NaN and Inf"), pytest.raises(mp.CheckpointError, match="size 70000"):
        check_numbers("x", array, np.float16)


@given(
    st.sampled_from([np.uint16, np.uint32]).flatmap(lambda kind: hnp.arrays(kind, st.integers(0, 40))),
    st.booleans(),
)
def test_the_greatest_number_is_numpys(bits, brain):
    """Any bits, as float32, float16 or bfloat16."""
    dtype = np.float32 if bits.dtype == np.uint32 else ml_dtypes.bfloat16 if brain else np.float16
    array = bits.view(dtype)
    expected = np.abs(array.astype(np.float64)).max(initial=0)
    np.testing.assert_equal(float(greatest(array)), float(expected))
