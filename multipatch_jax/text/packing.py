"""Visual tokens to their places in a language model's input: the prompt's markers, their count, and the packing."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int


def _is_traced(*arrays: Any) -> bool:
    return any(isinstance(array, Tracer) for array in arrays)


def _check_integers(name: str, ids: Any) -> None:
    if not hasattr(ids, "dtype") or ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        found = f"{ids.dtype} of shape {ids.shape}" if hasattr(ids, "dtype") else type(ids).__name__
        raise ValueError(f"{name} must be an integer array of shape (B, S), got {found}.")


def embedding_table(params: dict[str, Any]) -> Float[Array | np.ndarray, "vocabulary D"]:
    """The token embeddings of `params`; ValueError where they were not loaded."""
    try:
        return params["text_model"]["embed_tokens"]["embedding"]
    except (KeyError, TypeError):
        raise ValueError(
            'These params have no token embeddings: load them with parts=("vision", "connector", "embeddings").'
        ) from None


@jax.jit
def _embed(table, input_ids):
    # `get` would count negative ids from the end.
    return table.at[jnp.where(input_ids < 0, len(table), input_ids)].get(mode="fill", fill_value=jnp.nan)


def embed_tokens(params: dict[str, Any], input_ids: Int[Array | np.ndarray, "B S"]) -> Float[Array, "B S D"]:
    """The language model's own embeddings of token ids, `<image>` included.

    Args:
      params: loaded with "embeddings" among the `parts`.
      input_ids: inside your own jit, where nothing can be raised, an id outside the vocabulary becomes NaN.

    Raises:
      ValueError: the params have no embeddings, or an id is outside the vocabulary.
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
def _pack(input_ids, text_embeddings, visual_tokens, image_token_id, num_tokens):
    if not len(visual_tokens):  # nothing can be gathered from nothing
        visual_tokens = jnp.full((1, visual_tokens.shape[1]), jnp.nan)
    places = input_ids == image_token_id
    order = jnp.cumsum(places.ravel()).reshape(places.shape) - 1
    index = jnp.where(places, order, len(visual_tokens))
    tokens = visual_tokens.astype(text_embeddings.dtype).at[index].get(mode="fill", fill_value=jnp.nan)
    packed = jnp.where(places[..., None], tokens, text_embeddings)
    return jnp.where(places.sum() == num_tokens, packed, jnp.nan)


def _check_filled(places: np.ndarray, sizes: Sequence[int] | np.ndarray) -> None:
    """Each sample's places must be filled exactly by whole arrays of `sizes` tokens, one after another."""
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
            f"places of all {len(places)} samples up to sample {len(places) - 1} (places by sample: {places.tolist()}, "
            f"tokens in all: {ends[-1]}): if they are padding, say how many are real with num_tokens."
        )


def pack(
    input_ids: Int[Array | np.ndarray, "B S"],
    text_embeddings: Float[Array | np.ndarray, "B S D"],
    visual_tokens: Float[Array | np.ndarray, "V D"] | Sequence[Float[Array | np.ndarray, "V D"]],
    *,
    image_token_id: int,
    num_tokens: int | Int[Array, ""] | None = None,
) -> Float[Array, "B S D"]:
    """Puts visual tokens in the places of the `<image>` tokens: the language model's input embeddings.

    One jitted gather, compiled once for each (B, S, V). Differentiable in the embeddings and the tokens.

    Args:
      input_ids: padded on either side; a sample may have any number of images.
      text_embeddings: of all ids, `<image>` included, as `embed_tokens` gives them. Text positions come back as they
        are.
      visual_tokens: in the order of their places, sample after sample: one array, or a list of them (one an image, as
        `encode_images` gives them), which is concatenated on the host. Tiles (N, T, D) pass as (N * T, D). Cast to the
        dtype of `text_embeddings`.
      image_token_id: `config.image_token_id`.
      num_tokens: how many rows of one array are real, where it is padded to a capacity V so that one program serves
        many batches; None is all of them.

    Raises:
      ValueError: shapes that do not fit, or not as many tokens as places; of a list, also an image whose tokens would
        lie in two samples. Inside your own jit, where ids are not known and nothing can be raised, every value of the
        result is NaN instead.
    """
    _check_integers("input_ids", input_ids)
    shape = tuple(getattr(text_embeddings, "shape", ()))
    if (
        len(shape) != 3
        or shape[:2] != tuple(input_ids.shape)
        or not jnp.issubdtype(text_embeddings.dtype, jnp.floating)
    ):
        raise ValueError(
            f"text_embeddings must be floating of shape (B, S, D) with (B, S) = {tuple(input_ids.shape)} as input_ids, "
            f"got {getattr(text_embeddings, 'dtype', None)} of shape {shape}."
        )
    is_list = isinstance(visual_tokens, (list, tuple))
    arrays: list[Any] = list(visual_tokens) if is_list else [visual_tokens]
    for array in arrays:
        found = tuple(getattr(array, "shape", ()))
        if len(found) < 2 or found[-1] != shape[2] or not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"visual_tokens must be floating of shape (V, D) with D = {shape[2]} as text_embeddings, or a list of "
                f"such arrays, got {getattr(array, 'dtype', type(array).__name__)} of shape {found}."
            )
    if is_list and num_tokens is not None:
        raise ValueError(f"num_tokens goes with one padded array, got {num_tokens} and a list of {len(arrays)} arrays.")
    sizes = [math.prod(array.shape[:-1]) for array in arrays]
    capacity = sum(sizes)
    num_tokens = capacity if num_tokens is None else num_tokens
    if not _is_traced(num_tokens):
        try:
            num_tokens = operator.index(num_tokens)  # NumPy's and JAX's integers would each be a program of their own
        except TypeError:
            raise ValueError(f"num_tokens must be an integer or None, got {num_tokens!r}.") from None
        if not 0 <= num_tokens <= capacity:
            raise ValueError(f"num_tokens must be 0 to the {capacity} rows of visual_tokens, got {num_tokens}.")
        if not _is_traced(input_ids):
            places = (np.asarray(input_ids) == image_token_id).sum(axis=1)
            _check_filled(places, sizes if is_list else np.ones(num_tokens, int))
        elif is_list:  # the program itself sees to it that no image lies in two samples
            ends = jnp.cumsum((input_ids == image_token_id).sum(axis=1))
            num_tokens = jnp.where(jnp.isin(ends, np.cumsum([0, *sizes])).all(), num_tokens, -1)
    if is_list:
        xp = jnp if _is_traced(*arrays) else np
        rows = [xp.asarray(array).reshape(-1, shape[2]) for array in arrays]
        visual_tokens = xp.concatenate(rows) if rows else np.zeros((0, shape[2]), np.float32)
    else:
        visual_tokens = arrays[0].reshape(-1, shape[2])
    return _pack(input_ids, text_embeddings, visual_tokens, image_token_id, num_tokens)


def labels_for(
    input_ids: Int[Array | np.ndarray, "B S"],
    *,
    image_token_id: int,
    attention_mask: Int[Array | np.ndarray, "B S"] | None = None,
    ignore_index: int = -100,
) -> Int[Array, "B S"]:
    """Targets for training: the ids, with `ignore_index` at `<image>` places and at padding.

    The reference does not mask image places by itself: a loss over them would teach the model to write `<image>`.
    """
    _check_integers("input_ids", input_ids)
    if attention_mask is not None and np.shape(attention_mask) != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, got {np.shape(attention_mask)} and {input_ids.shape}."
        )
    ids = jnp.asarray(input_ids, jnp.int32)  # unsigned ones could not hold ignore_index
    ignored = ids == image_token_id
    if attention_mask is not None:
        ignored |= jnp.asarray(attention_mask) == 0
    return jnp.where(ignored, ignore_index, ids)
