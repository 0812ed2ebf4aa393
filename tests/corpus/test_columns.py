"""Columns of vectors: every bit comes back, bfloat16 too, and rows with an error stay in their places."""

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import multipatch_jax as mp
from multipatch_jax.corpus.columns import results_table, vector_field, vectors_field

DTYPES = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@given(lengths=st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=8))
def test_vectors_come_back_bit_for_bit(tmp_path_factory, dtype, lengths):
    rng = np.random.default_rng(0)
    wanted = [None if x is None else rng.normal(size=(x, 3)).astype(DTYPES[dtype]) for x in lengths]
    means = [None if x is None else rng.normal(size=3).astype(DTYPES[dtype]) for x in lengths]
    errors = ["broken" if x is None else None for x in lengths]
    values = [None if a is None else {"tokens": a, "pooled": b} for a, b in zip(wanted, means, strict=True)]
    rows = [{"id": index * 7, "path": f"{index}.png"} for index in range(len(lengths))]
    fields = [vectors_field("tokens", 3, dtype), vector_field("pooled", 3, dtype)]
    file = tmp_path_factory.mktemp("table") / "t.parquet"
    parquet.write_table(results_table(rows, errors, values, fields), file)
    table = parquet.read_table(file)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert table["path"].to_pylist() == [row["path"] for row in rows]
    assert table["error"].to_pylist() == errors
    for name, expected in (("tokens", wanted), ("pooled", means)):
        for found, array in zip(mp.corpus.to_numpy(table, name), expected, strict=True):
            assert (found is None) == (array is None)
            if array is not None:
                assert found is not None
                assert found.shape == array.shape
                assert found.dtype == array.dtype
                np.testing.assert_array_equal(bits(found), bits(array))
        part = mp.corpus.to_numpy(table.slice(len(rows) // 2), name)
        for found, array in zip(part, expected[len(rows) // 2 :], strict=True):
            assert (found is None) == (array is None)
            if found is not None and array is not None:
                np.testing.assert_array_equal(bits(found), bits(array))


def test_a_bfloat16_column_says_what_its_bits_are(tmp_path):
    values = [{"pooled": np.ones(2, ml_dtypes.bfloat16)}]
    table = results_table([{"id": 1}], [None], values, [vector_field("pooled", 2, "bfloat16")])
    parquet.write_table(table, tmp_path / "t.parquet")
    field = parquet.read_schema(tmp_path / "t.parquet").field("pooled")
    assert field.type == pa.list_(pa.uint16(), 2)
    assert field.metadata[b"dtype"] == b"bfloat16"


@pytest.mark.parametrize("name", ["id", "error", "tokens"])
def test_other_columns_are_refused(name):
    table = results_table([{"id": 1}], ["broken"], [None], [vector_field("pooled", 2, "float32")])
    with pytest.raises(ValueError, match="a column of vectors"):
        mp.corpus.to_numpy(table, name)
