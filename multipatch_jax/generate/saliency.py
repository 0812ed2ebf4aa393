"""What an answer depends on: one number for each token that the decoder reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Shaped

from multipatch_jax.arguments import is_kind, require_tree, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.generate.features import text_features
from multipatch_jax.nn import Compute, logits, resolve_decoder_compute
from multipatch_jax.params import Params, check_parts


def token_saliency(
    params: Params,
    inputs_embeds: Float[Array | np.ndarray, "B S D"],
    input_ids: Int[Array | np.ndarray, "B S"],
    places: Int[Array | np.ndarray, "B A"],
    *,
    config: ModelConfig,
    attention_mask: Shaped[Array | np.ndarray, "B S"] | None = None,
    compute: Compute = Compute(remat=True),
) -> Float32[Array, "B S"]:
    """Compute how strongly the log-probability of an answer depends on each token before it.

    The number of a token is |g| |x|: the norm of the gradient of the log-probability with respect to its input
    embedding, times the norm of the embedding. It is, to first order, the most that the log-probability can change when
    the embedding changes by its own length. The product g . x is no such measure: it is the effect of the embedding's
    length, which hardly matters, because the decoder normalises its inputs.

    Logits are computed only for the answer's tokens, and gradients only for the embeddings.

    Args:
      params: loaded with parts="all".
      inputs_embeds: of prompts and answers, visual tokens in their places, as `text.pack` makes them.
      input_ids: of the same tokens. The numbers of visual tokens are `saliency[input_ids == config.image_token_id]`.
      places: the columns of the answer's tokens, or of some of them. Their log-probabilities are added. Numbers below 1
        fill up the shorter rows.
      config: the model's.
      attention_mask: as in `text_features`; 0 is padding, on either side.
      compute: how to compute. `remat` keeps the memory low.

    Returns:
      (B, S), 0 at padding and from the answer's last token on.

    Raises:
      ValueError: as `text_logits`, or `input_ids` or `places` are not integers of their shapes.
    """
    require_type("config", config, ModelConfig)
    require_tree("params", params)
    check_parts(config, "text")
    if config.embedding_size is not None:
        raise ValueError(f"A retriever (config.embedding_size={config.embedding_size}) answers nothing.")
    shape = tuple(getattr(inputs_embeds, "shape", ()))[:2]
    for name, array, wanted in (("input_ids", input_ids, shape), ("places", places, shape[:1])):
        found = tuple(getattr(array, "shape", ()))
        if found[: len(wanted)] != wanted or len(found) != 2 or not is_kind(array.dtype, jnp.integer):
            letters = "(B, S)" if name == "input_ids" else "(B, A)"
            raise ValueError(
                f"{name} must be integers of shape {letters} for inputs_embeds of {shape} tokens, got "
                f"{getattr(array, 'dtype', type(array).__name__)} of shape {found}."
            )
    used = {name: params[name] for name in ("text_model", "lm_head") if name in params}
    return saliency(used, inputs_embeds, input_ids, places, attention_mask, config=config, compute=compute)


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def saliency(
    params: Params,
    inputs_embeds: Float[Array, "B S D"],
    input_ids: Int[Array, "B S"],
    places: Int[Array, "B A"],
    attention_mask: Shaped[Array, "B S"] | None,
    *,
    config: ModelConfig,
    compute: Compute,
) -> Float32[Array, "B S"]:
    """Compute what `token_saliency` returns, from its arguments after they were checked."""
    text = config.text
    assert text is not None
    targets = jnp.take_along_axis(input_ids, jnp.maximum(places, 0), axis=1)

    def log_probability(embeds):
        hidden = text_features(params, embeds, config=config, attention_mask=attention_mask, compute=compute)
        decided = resolve_decoder_compute(params, compute)
        before = jnp.take_along_axis(hidden, jnp.maximum(places - 1, 0)[..., None], axis=1)
        scores = jax.nn.log_softmax(logits(params, before, text, decided))
        own = jnp.take_along_axis(scores, targets[..., None], axis=2)[..., 0]
        return jnp.where(places > 0, own, 0).sum()

    gradient = jax.grad(log_probability)(inputs_embeds)
    sizes = [jnp.linalg.norm(x.astype(jnp.float32), axis=-1) for x in (gradient, inputs_embeds)]
    return sizes[0] * sizes[1]
