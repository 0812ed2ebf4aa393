"""The head of a ColIdefics3 retriever (colSmol): a projection of the language model's output to unit vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multipatch_jax.nn.linear import matmul


@jax.jit
def retrieval_embeddings(
    params: dict[str, Any],
    hidden_states: Float[Array, "B S D"],
    attention_mask: Int[Array, "B S"],
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
    """
    hidden_states, attention_mask = jnp.asarray(hidden_states), jnp.asarray(attention_mask)
    batch, length, width = hidden_states.shape
    kernel = params["linear"]["kernel"].astype(hidden_states.dtype)
    x = matmul(hidden_states.reshape(-1, width), kernel, "highest")
    x = x + params["linear"]["bias"].astype(x.dtype)[None]
    x = (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).reshape(batch, length, -1)
    return (x * attention_mask[..., None].astype(x.dtype)).astype(hidden_states.dtype)
