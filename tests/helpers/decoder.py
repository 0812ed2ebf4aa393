"""The text decoder beside transformers' Llama: the same random weights in both, without a file between them."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.checkpoint import config_to_hf
from tests.helpers.models import TINY

PREFIXES = {"model.text_model.": "model.", "lm_head.": "lm_head."}  # of the tensors' names: ours, a Llama's


class Decoder(NamedTuple):
    """A reference decoder, and the same weights as our params."""

    config: mp.ModelConfig
    params: dict[str, Any]
    reference: Any


def text_of(config: mp.ModelConfig) -> mp.TextConfig:
    assert config.text is not None
    return config.text


def with_text(text: mp.TextConfig, **changes: Any) -> mp.ModelConfig:
    """A config with this language model, some of its fields changed, beside a small tower."""
    text = dataclasses.replace(text, **changes)
    return dataclasses.replace(
        TINY,
        text=text,
        connector=dataclasses.replace(TINY.connector, text_hidden_size=text.hidden_size),
        image_token_id=text.vocab_size - 1,
    )


def make_decoder(config: mp.ModelConfig, seed: int = 0) -> Decoder:
    """Makes a float32 Llama with every tensor random, and our params of it."""
    top, _ = config_to_hf(config)
    hf = LlamaConfig(**top["text_config"] | {"tie_word_embeddings": top["tie_word_embeddings"]})
    with torch.device("meta"):
        model = LlamaForCausalLM(hf)
    model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(hf)
    reference.randomize(model, seed)
    return Decoder(config, params_of(config, model), model.eval())


def params_of(config: mp.ModelConfig, model: Any) -> dict[str, Any]:
    """Our params of a Llama, in its dtype."""
    tensors = model.state_dict()

    def read(name: str) -> np.ndarray:
        theirs = next(name.replace(ours, llama, 1) for ours, llama in PREFIXES.items() if name.startswith(ours))
        tensor = tensors[theirs]
        return np.asarray(tensor.float().numpy(), jnp.bfloat16 if tensor.dtype == torch.bfloat16 else None)

    flat = mp.params.to_params(config, ("embeddings", "text"), read)
    return mp.params.unflatten({path: jnp.asarray(array) for path, array in flat})


def in_bfloat16(model: Any) -> Any:
    """The model in bfloat16 as transformers loads it: its frequencies stay float32."""
    frequencies = model.model.rotary_emb.inv_freq.float()
    model.bfloat16()
    model.model.rotary_emb.inv_freq = frequencies
    return model


def embeddings(config: mp.ModelConfig, batch: int, length: int, seed: int = 1) -> np.ndarray:
    """Random input embeddings, as large as `randomize` makes those of tokens."""
    chance = np.random.default_rng(seed)
    return chance.normal(0, 0.3, (batch, length, config.connector.text_hidden_size)).astype(np.float32)


def position_ids(mask: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)


@torch.no_grad()
def reference_outputs(
    model: Any, embeds: np.ndarray, mask: np.ndarray | None = None, positions: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's hidden states after the final norm, and its logits, as float64."""
    options = {
        "attention_mask": None if mask is None else torch.from_numpy(mask),
        "position_ids": None if positions is None else torch.from_numpy(positions.astype(np.int64)),
    }
    hidden = model.model(inputs_embeds=torch.from_numpy(embeds).to(model.dtype), **options).last_hidden_state
    return hidden.double().numpy(), model.lm_head(hidden).double().numpy()
