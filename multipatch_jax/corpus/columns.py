"""The columns of results as Arrow has them, and arrays of numbers in lists of one size.

Arrow has no bfloat16: its 16 bits are stored as uint16, and the field's metadata say so ({"dtype": "bfloat16"}).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa

STORED = {"float16": pa.float16(), "float32": pa.float32(), "bfloat16": pa.uint16()}  # dtype -> the type of its bits
CARRIED = {"path": pa.string(), "member": pa.string()}  # columns of a manifest that the results have too


def vector_field(name: str, width: int, dtype: str) -> pa.Field:
    """Return the field of a column that holds one vector of `width` numbers for each row."""
    return pa.field(name, pa.list_(STORED[dtype], width), metadata={"dtype": dtype})


def vectors_field(name: str, width: int, dtype: str) -> pa.Field:
    """Return the field of a column that holds any number of vectors, each of `width` numbers, for each row."""
    return pa.field(name, pa.list_(pa.list_(STORED[dtype], width)), metadata={"dtype": dtype})


def results_table(
    rows: Sequence[Mapping[str, Any]], errors: Sequence[str | None], values: Sequence[Any], fields: Sequence[pa.Field]
) -> pa.Table:
    """Return the results of some rows of a manifest.

    Args:
      rows: of the manifest, of which `id` and the columns of `CARRIED` are kept.
      errors: for each row, what is wrong with its image, or None.
      values: for each row, a dict with a value for each field; values of rows with an error are ignored.
      fields: of the columns that the task adds.
    """
    schema = [pa.field("id", pa.int64(), nullable=False)]
    columns = [pa.array([row["id"] for row in rows], pa.int64())]
    for name, kind in CARRIED.items():
        if name in rows[0]:
            schema.append(pa.field(name, kind))
            columns.append(pa.array([row[name] for row in rows], kind))
    schema.append(pa.field("error", pa.string()))
    columns.append(pa.array(errors, pa.string()))
    for field in fields:
        found = [None if error else value[field.name] for error, value in zip(errors, values, strict=True)]
        schema.append(field)
        columns.append(_column(found, field.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(schema))


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return a column. Arrays of numbers go in without becoming Python's numbers."""
    missing = pa.array([value is None for value in values])
    given = [value for value in values if value is not None]
    if pa.types.is_fixed_size_list(kind):
        blank = np.zeros_like(given[0]) if given else np.zeros(kind.list_size, kind.value_type.to_pandas_dtype())
        flat = _flat([blank if value is None else value for value in values], kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=missing)
    if pa.types.is_list(kind):
        inner = kind.value_type
        ends = np.cumsum([0, *(0 if value is None else len(value) for value in values)])
        flat = _flat(given, inner.value_type)
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=inner)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), vectors, type=kind, mask=missing)
    return pa.array(values, kind)


def _flat(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    found = [array.reshape(-1) for array in arrays]
    joined = np.concatenate(found) if found else np.zeros(0, kind.to_pandas_dtype())
    return pa.array(joined.view(np.uint16) if kind == pa.uint16() else joined, kind)


def to_numpy(table: pa.Table, name: str) -> list[np.ndarray | None]:
    """Return a column of vectors of a results table as NumPy arrays, with None for rows that have an error.

        table = pyarrow.parquet.read_table("OUT/results")
        tokens = mp.corpus.to_numpy(table, "tokens")

    Args:
      table: a table as `run` writes it, whole or some rows of it.
      name: of a column of vectors: "tokens" or "pooled".

    Returns:
      For each row, an array (tokens, D), or (D,) if the column holds one vector for each row, of the dtype that was
      stored, bfloat16 too.

    Raises:
      ValueError: the table has no such column of vectors.
    """
    field = table.schema.field(name) if name in table.column_names else None
    dtype = (field.metadata or {}).get(b"dtype", b"").decode() if field is not None else ""
    if dtype not in STORED:
        raise ValueError(f"name must be a column of vectors as `corpus.run` writes it, got {name!r:.60}.")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    found: list[np.ndarray | None] = []
    for chunk in table[name].chunks:
        for row in chunk:
            if not row.is_valid:
                found.append(None)
            elif pa.types.is_fixed_size_list(row.type):
                found.append(row.values.to_numpy(zero_copy_only=False).view(kind))
            else:
                flat = row.values.flatten().to_numpy(zero_copy_only=False)
                found.append(flat.view(kind).reshape(-1, row.type.value_type.list_size))
    return found
