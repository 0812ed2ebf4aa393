"""The tasks "tokens" and "pooled": the visual tokens of each image, or their mean."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from multipatch_jax.checkpoint import default_dtype, from_pretrained
from multipatch_jax.corpus.columns import vector_field, vectors_field
from multipatch_jax.corpus.job import Job, Loaded, Source
from multipatch_jax.encode import iter_encode_images, prepare_execution, warmup
from multipatch_jax.image import ImageError, TilePlan
from multipatch_jax.params import make_mesh, shard


def load_tokens(job: Job) -> Loaded:
    """Prepare the task "tokens": the grid of each image's tiles, and all of its visual tokens (N * T, D)."""

    def values(tokens: np.ndarray, plan: TilePlan) -> dict[str, Any]:
        return {"rows": plan.rows, "cols": plan.cols, "tokens": tokens}

    def fields(width: int, dtype: str) -> list[pa.Field]:
        return [pa.field("rows", pa.int32()), pa.field("cols", pa.int32()), vectors_field("tokens", width, dtype)]

    return _load(job, fields, values, lambda found: len(found["tokens"]))


def load_pooled(job: Job) -> Loaded:
    """Prepare the task "pooled": the mean of each image's visual tokens (D,), computed in float32."""

    def values(tokens: np.ndarray, plan: TilePlan) -> dict[str, Any]:
        return {"num_tokens": plan.num_tokens, "pooled": tokens.mean(0, dtype=np.float32)}

    def fields(width: int, dtype: str) -> list[pa.Field]:
        return [pa.field("num_tokens", pa.int32()), vector_field("pooled", width, dtype)]

    return _load(job, fields, values, lambda found: found["num_tokens"], "float32")


def _load(
    job: Job,
    make_fields: Callable[[int, str], list[pa.Field]],
    values: Callable[[np.ndarray, TilePlan], dict[str, Any]],
    count: Callable[[Mapping[str, Any]], int],
    stored_dtype: str | None = None,
) -> Loaded:
    """Load the model onto all devices of this process, and compile the programs of the stream.

    Args:
      make_fields: returns the fields, of the width and dtype of a vector.
      values: returns the values of an image's fields; the last is its vectors.
      count: as in `Loaded`.
      stored_dtype: of the vectors, unless the job names another; None is the dtype of the computation.
    """
    config, params = from_pretrained(job.model, revision=job.revision, dtype=job.dtype or default_dtype())
    devices = jax.local_devices()
    if len(devices) > 1:
        params = shard(params, make_mesh(data=len(devices), devices=devices))
    warmup(params, config=config, batch_size=job.batch_size)
    dtype = job.token_dtype or stored_dtype or str(prepare_execution(params, config)[1].compute.dtype)
    fields = make_fields(config.connector.text_hidden_size, dtype)

    def answer(sources: Iterable[Source]) -> Iterator[dict[str, Any] | Exception]:
        errors: dict[int, Exception] = {}

        def images() -> Iterator[bytes]:
            for index, source in enumerate(sources):
                if isinstance(source, Exception):
                    errors[index] = source
                    source = b""  # which holds the row's place in the stream
                yield source

        options = {"config": config, "batch_size": job.batch_size, "on_error": "skip", "with_plans": True}
        for index, result in enumerate(iter_encode_images(params, images(), **options)):
            if isinstance(result, Exception):
                yield errors.get(index) or _own_error(result)
            else:
                yield _stored(values(*result), fields[-1].name, dtype)

    return Loaded(fields, answer, count)


def _own_error(error: Exception) -> Exception:
    """Return the error without the index that the stream puts before it, which counts the images of a batch."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def _stored(values: dict[str, Any], name: str, dtype: str) -> dict[str, Any] | ImageError:
    """Return the values with the vectors of that name in the dtype that they are stored in.

    An error is returned if a finite number is too large for the dtype, as those above 65504 are for float16.
    """
    vectors = values[name]
    with np.errstate(over="ignore"):
        stored = vectors.astype(np.dtype(dtype))
    if dtype == "float16" and (np.isinf(stored) & np.isfinite(vectors.astype(np.float32))).any():
        return ImageError("The tokens have numbers above 65504, which float16 cannot hold: store them as float32.")
    return {**values, name: stored}
