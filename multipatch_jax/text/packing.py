"""Make a language model's input embeddings and labels: embed token ids, and put visual tokens in their places."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Int32

from multipatch_jax.arguments import LARGEST_INT, is_kind, require_integer
from multipatch_jax.params import Params


def _is_traced(*arrays: Any) -> bool:
    return any(isinstance(array, Tracer) for array in arrays)


def _check_integers(name: str, ids: Any) -> None:
    if getattr(ids, "ndim", None) != 2 or not is_kind(ids.dtype, jnp.integer):
        found = f"{ids.dtype} of shape {ids.shape}" if hasattr(ids, "ndim") else type(ids).__name__
        raise ValueError(f"{name} must be an integer array of shape (B, S), got {found}.")


def embedding_table(params: Params) -> Float[Array | np.ndarray, "V D"]:
    """Return the table of token embeddings of `params`.

    Raises:
      ValueError: the embeddings were not loaded.
    """
    try:
        return params["text_model"]["embed_tokens"]["embedding"]
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            'These params have no token embeddings: load them with parts=("vision", "connector", "embeddings").'
        ) from None


@jax.jit
def _embed(table: Float[Array, "V D"], input_ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    # A negative index would count from the end, so negative ids are moved beyond it.
    return table.at[jnp.where(input_ids < 0, len(table), input_ids)].get(mode="fill", fill_value=jnp.nan)


def embed_tokens(params: Params, input_ids: Int[Array | np.ndarray, "B S"]) -> Float[Array, "B S D"]:
    """Look up the language model's own embeddings of token ids; `<image>` ids get theirs too.

    Args:
      params: loaded with "embeddings" among the `parts`.
      input_ids: any integer dtype.

    Returns:
      (B, S, D) in the dtype of the embeddings.

    Raises:
      ValueError: the params have no embeddings, or an id is outside the vocabulary. Inside your own jit no error can
        depend on ids; there the embedding of such an id is NaN.
    """
    table = embedding_table(params)
    _check_integers("input_ids", input_ids)
    if not _is_traced(input_ids):
        ids = np.asarray(input_ids)
        wrong = (ids < 0) | (ids >= len(table))
        if wrong.any():
            sample, place = np.argwhere(wrong)[0]
            raise ValueError(
                f"Ids must be in the vocabulary, 0 to {len(table) - 1}, got {ids[sample, place]} in sample {sample} at "
                f"place {place}: was the text tokenised for another model?"
            )
    return _embed(jnp.asarray(table), input_ids)


@jax.jit
def _pack(
    input_ids: Int[Array, "B S"],
    text_embeddings: Float[Array, "B S D"],
    visual_tokens: Float[Array, "tokens D"],
    image_token_id: Int[Array, ""],
    num_tokens: Int[Array, ""],
) -> Float[Array, "B S D"]:
    if not len(visual_tokens):  # a gather needs at least one row
        visual_tokens = jnp.full((1, visual_tokens.shape[1]), jnp.nan)
    places = input_ids == image_token_id
    order = jnp.cumsum(places.ravel()).reshape(places.shape) - 1
    index = jnp.where(places, order, len(visual_tokens))
    tokens = jnp.asarray(visual_tokens).astype(text_embeddings.dtype).at[index].get(mode="fill", fill_value=jnp.nan)
    packed = jnp.where(places[..., None], tokens, text_embeddings)
    return jnp.where(places.sum() == num_tokens, packed, jnp.nan)


def _check_filled(places: np.ndarray, sizes: Sequence[int] | np.ndarray) -> None:
    """Raise a ValueError unless whole arrays, in order, fill the `<image>` places of each sample exactly.

    Args:
      places: the number of `<image>` places of each sample.
      sizes: the number of tokens of each array.
    """
    ends = np.cumsum([0, *sizes])
    start = 0
    for sample, wanted in enumerate(places):
        end = ends[min(np.searchsorted(ends, start + wanted), len(ends) - 1)]
        if end - start != wanted:
            raise ValueError(
                f"Visual tokens must fill the places of each sample exactly, got {end - start} tokens for the {wanted} "
                f"places of sample {sample} (places by sample: {places.tolist()}, tokens in all: {ends[-1]}): expand "
                f"the prompts with the plans of these images, and pass the tokens in the order of the places."
            )
        start = end
    if start != ends[-1]:
        raise ValueError(
            f"Visual tokens must fill the places of each sample exactly, got {ends[-1] - start} tokens more than the "
            f"places of all {len(places)} samples, 0 to {len(places) - 1} (places by sample: {places.tolist()}, "
            f"tokens in all: {ends[-1]}): if they are padding, say how many are real with num_tokens."
        )


def pack(
    input_ids: Int[Array | np.ndarray, "B S"],
    text_embeddings: Float[Array | np.ndarray, "B S D"],
    visual_tokens: Float[Array | np.ndarray, "tokens D"] | Sequence[Float[Array | np.ndarray, "tokens D"]],
    *,
    image_token_id: int,
    num_tokens: int | Int[Array, ""] | None = None,
) -> Float[Array, "B S D"]:
    """Put visual tokens in the places of the `<image>` ids, which gives the language model's input embeddings.

    This is one jitted gather, compiled once for each B, S and number of visual tokens. It is differentiable in the
    embeddings and in the tokens.

    Args:
      input_ids: padded on either side. A sample may have any number of images.
      text_embeddings: the embeddings of all ids, `<image>` included, as `embed_tokens` returns them. Those of ids other
        than `<image>` are returned unchanged.
      visual_tokens: in the order of their places, sample after sample. Either one array, or a list of arrays (one for
        each image, as `encode_images` returns them), which is concatenated on the host unless it is traced. An array
        (N, T, D) counts as (N * T, D). The tokens are cast to the dtype of `text_embeddings`.
      image_token_id: `config.image_token_id`.
      num_tokens: for one array that is padded to a fixed capacity, so that one program serves many batches: the number
        of its first rows that are real. None means that all rows are real.

    Raises:
      ValueError: shapes or dtypes do not fit; there are more or fewer tokens than places; or the tokens of one array of
        a list would lie in two samples. Inside your own jit no error can depend on ids; there every value of the result
        is NaN if tokens and places do not fit.
    """
    _check_integers("input_ids", input_ids)
    image_token_id = require_integer("image_token_id", image_token_id, 0)
    shape = tuple(getattr(text_embeddings, "shape", ()))
    if len(shape) != 3 or shape[:2] != tuple(input_ids.shape) or not is_kind(text_embeddings.dtype, jnp.floating):
        raise ValueError(
            f"text_embeddings must be floating of shape (B, S, D) with (B, S) = {tuple(input_ids.shape)} as input_ids, "
            f"got {getattr(text_embeddings, 'dtype', None)} of shape {shape}."
        )
    is_list = isinstance(visual_tokens, (list, tuple))
    arrays: list[Any] = list(visual_tokens) if is_list else [visual_tokens]
    for array in arrays:
        found = tuple(getattr(array, "shape", ()))
        if len(found) < 2 or found[-1] != shape[2] or not is_kind(array.dtype, jnp.floating):
            raise ValueError(
                f"visual_tokens must be floating of shape (tokens, D) with D = {shape[2]} as text_embeddings, or a "
                f"list of such arrays, got {getattr(array, 'dtype', type(array).__name__)} of shape {found}."
            )
    if is_list and num_tokens is not None:
        raise ValueError(f"num_tokens goes with one padded array, got {num_tokens} and a list of {len(arrays)} arrays.")
    sizes = [math.prod(array.shape[:-1]) for array in arrays]
    capacity = sum(sizes)
    num_tokens = capacity if num_tokens is None else num_tokens
    if not _is_traced(num_tokens):
        try:
            num_tokens = operator.index(num_tokens)  # NumPy's and JAX's integers would each compile another program
        except TypeError:
            raise ValueError(f"num_tokens must be an integer or None, got {num_tokens!r}.") from None
        if not 0 <= num_tokens <= capacity:
            raise ValueError(f"num_tokens must be 0 to the {capacity} rows of visual_tokens, got {num_tokens}.")
        if not _is_traced(input_ids):
            places = (np.asarray(input_ids) == image_token_id).sum(axis=1)
            _check_filled(places, sizes if is_list else np.ones(num_tokens, int))
        elif is_list:  # ids are traced: an array that lies in two samples makes num_tokens -1, so all is NaN
            ends = jnp.cumsum((input_ids == image_token_id).sum(axis=1))
            num_tokens = jnp.where(jnp.isin(ends, np.cumsum([0, *sizes])).all(), num_tokens, -1)
    if is_list:
        xp = jnp if _is_traced(*arrays) else np
        rows = [xp.asarray(array).reshape(-1, shape[2]) for array in arrays]
        visual_tokens = xp.concatenate(rows) if rows else np.zeros((0, shape[2]), np.float32)
    else:
        visual_tokens = arrays[0].reshape(-1, shape[2])
    return _pack(input_ids, text_embeddings, visual_tokens, image_token_id, num_tokens)


def pad(rows: Sequence[Sequence[int]], side: str, value: int) -> Int32[np.ndarray, "B S"]:
    """Return rows of several lengths as one array, filled with `value` on a side, "left" or "right"."""
    length = max(map(len, rows))
    padded = np.full((len(rows), length), value, np.int32)
    for sample, row in enumerate(rows):
        padded[sample, slice(length - len(row), None) if side == "left" else slice(len(row))] = row
    return padded


def labels_for(
    input_ids: Int[Array | np.ndarray, "B S"],
    *,
    image_token_id: int,
    attention_mask: Int[Array | np.ndarray, "B S"] | None = None,
    assistant_mask: Int[Array | np.ndarray, "B S"] | None = None,
    ignore_index: int = -100,
) -> Int[Array, "B S"]:
    """Make training targets: the ids, with `ignore_index` at `<image>` places, at padding and outside of answers.

    A loss over image places would teach the model to write `<image>`; the reference does not mask them by itself.

    Args:
      input_ids: as in `pack`.
      image_token_id: `config.image_token_id`.
      attention_mask: 0 at padding. None masks no padding.
      assistant_mask: 0 outside of the assistant's answers, as in `TextInputs`. None masks no text.
      ignore_index: the label of positions without a loss.

    Raises:
      ValueError: an argument is not of integers, a mask has another shape than `input_ids`, or no label is left. Inside
        your own jit no error can depend on values; there such labels are all `ignore_index`.
    """
    _check_integers("input_ids", input_ids)
    require_integer("image_token_id", image_token_id, 0, LARGEST_INT)
    require_integer("ignore_index", ignore_index, -LARGEST_INT - 1, LARGEST_INT)
    masks = {"attention_mask": attention_mask, "assistant_mask": assistant_mask}
    for name, mask in masks.items():
        if mask is None:
            continue
        if np.shape(mask) != input_ids.shape:
            raise ValueError(f"{name} must have the shape of input_ids, got {np.shape(mask)} and {input_ids.shape}.")
        dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
        if not is_kind(dtype, jnp.integer, jnp.bool_):
            raise ValueError(f"{name} must be of integers, 0 or 1, got {dtype}.")
    ids = jnp.asarray(input_ids, jnp.int32)  # unsigned integers could not hold ignore_index
    ignored = ids == image_token_id
    for mask in masks.values():
        if mask is not None:
            ignored |= jnp.asarray(mask) == 0
    if not _is_traced(ignored) and ignored.all():
        raise ValueError(
            f"Labels must have something to learn, and all {ids.size} of these are images, padding or outside of "
            f"answers: give chats that end with an answer of the assistant, and cut none of it with max_length."
        )
    return jnp.where(ignored, ignore_index, ids)
