"""The head of a ColIdefics3 retriever (colSmol): a projection of the language model's output to unit vectors."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from multipatch_jax.arguments import check_array, is_kind, require_tree
from multipatch_jax.nn.linear import matmul


def retrieval_embeddings(
    params: dict[str, Any],
    hidden_states: Float[Array | np.ndarray, "B S D"],
    attention_mask: Int[Array | np.ndarray, "B S"] | Bool[Array | np.ndarray, "B S"],
) -> Float[Array, "B S R"]:
    """Project the hidden state of each token to a unit vector.

    Args:
      params: a nested dict with "linear", as `from_pretrained(..., parts="text")` loads it from a ColIdefics3
        checkpoint.
      hidden_states: the language model's last hidden states.
      attention_mask: 1 for tokens, 0 for padding.

    Returns:
      A unit vector for each token and zeros for padding. They are computed in float32 and cast to the dtype of
      `hidden_states`.

    Raises:
      ValueError: `params` have no "linear", or an array has another shape or dtype.
    """
    require_tree("params", params)
    linear = params.get("linear")
    if not isinstance(linear, Mapping) or not {"kernel", "bias"} <= linear.keys():
        raise ValueError('These params have no head of a retriever: load a ColIdefics3 checkpoint with parts="text".')
    check_array("linear/kernel", linear["kernel"], ("D", "R"), np.floating)
    width, size = linear["kernel"].shape
    check_array("linear/bias", linear["bias"], (size,), np.floating)
    check_array("hidden_states", hidden_states, ("B", "S", width), np.floating)
    kind = np.bool_ if is_kind(getattr(attention_mask, "dtype", None), np.bool_) else np.integer
    check_array("attention_mask", attention_mask, tuple(hidden_states.shape[:2]), kind)
    return _project(*map(jnp.asarray, (linear["kernel"], linear["bias"], hidden_states, attention_mask)))


@jax.jit
def _project(kernel, bias, hidden_states, attention_mask):
    batch, length, width = hidden_states.shape
    x = matmul(hidden_states.reshape(-1, width), kernel.astype(hidden_states.dtype), "highest")
    x = x + bias.astype(x.dtype)[None]
    x = (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).reshape(batch, length, -1)
    return jnp.where(attention_mask[..., None] != 0, x, 0).astype(hidden_states.dtype)
