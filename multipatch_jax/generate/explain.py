"""What a generator's answer looked at in its images."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from multipatch_jax.arguments import require_integer, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.generate.answer import Answer
from multipatch_jax.generate.model import COLUMNS, Model
from multipatch_jax.generate.request import read_requests
from multipatch_jax.generate.saliency import saliency
from multipatch_jax.nn import Compute
from multipatch_jax.params import Params
from multipatch_jax.text import Chat

LEAST_PLACES = 64  # most answers are no longer


def explain(
    model: Model, chat: str | Chat, images: Sequence[Any], answer: Answer, token: int | None
) -> list[Float32[np.ndarray, " tokens"]]:
    """Return a number for each visual token of each image and video; as `Generator.explain`.

    Lengths are padded to powers of two, so that few programs are compiled.
    """
    require_type("answer", answer, Answer)
    chosen = range(len(answer.ids)) if token is None else [require_integer("token", token, 0, len(answer.ids) - 1)]
    (request,) = read_requests(model, [chat], images, {})
    prompt, length = request.prompt, len(request.prompt) + len(answer.ids)
    if len(prompt) != answer.num_prompt_tokens:
        raise ValueError(
            f"answer must be to this chat and these images, whose prompt has {len(prompt)} tokens, got the answer to a "
            f"prompt of {answer.num_prompt_tokens}."
        )
    tokens, _ = model.visual_tokens.of(request.sources)
    if not tokens:
        return []
    size = max(COLUMNS, _power_of_two(length))
    ids, visual = np.zeros(size, np.int32), np.zeros((size, tokens[0].shape[1]), model.embeddings.dtype)
    ids[:length] = [*prompt, *answer.ids]
    is_visual = np.zeros(size, bool)
    is_visual[: len(prompt)] = prompt == model.config.image_token_id  # an answer's `<image>` is no visual token
    visual[is_visual] = np.concatenate(tokens)
    places = np.zeros(max(LEAST_PLACES, _power_of_two(len(answer.ids))), np.int32)
    places[: len(chosen)] = len(prompt) + np.array(chosen)
    compute = dataclasses.replace(model.compute, remat=True)
    found = _saliency_of(
        model.decoder, ids, visual, is_visual, places, np.int32(length), config=model.config, compute=compute
    )
    return np.split(np.asarray(found)[is_visual], np.cumsum([len(one) for one in tokens])[:-1])


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _saliency_of(
    params: Params,
    ids: Int32[Array, " S"],
    visual: Float[Array, "S D"],
    is_visual: Bool[Array, " S"],
    places: Int32[Array, " A"],
    length: Int32[Array, ""],
    *,
    config: ModelConfig,
    compute: Compute,
) -> Float32[Array, " S"]:
    """Compute the saliency of one text with a model's params.

    Layers that are split (`nn.split_layers`) are stacked again. Split ones would compile four times as long and,
    because XLA merges what remat repeats with what it repeats, need more memory than the copy.
    """
    text = params["text_model"]
    layers = text["layers"]
    if "0" in layers:
        layers = jax.tree.map(lambda *x: jnp.stack(x), *(layers[str(i)] for i in range(len(layers))))
    embeds = jnp.where(is_visual[:, None], visual, text["embed_tokens"]["embedding"][ids])
    real = jnp.arange(len(ids)) < length
    whole = {name: x for name, x in params.items() if name != "packed"} | {"text_model": text | {"layers": layers}}
    return saliency(whole, embeds[None], ids[None], places[None], real[None], config=config, compute=compute)[0]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
