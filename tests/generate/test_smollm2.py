"""SmolLM2-135M's own weights: the reference's 128 greedy tokens, a sensible answer, and what bfloat16 changes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import multipatch_jax as mp
from multipatch_jax.nn import decoder_step, init_packed_cache, pack_decoder
from tests.helpers import tolerances
from tests.helpers.compiled import compiled_code
from tests.helpers.decoder import params_of, with_text
from tests.helpers.smollm2 import fetch, read_llama, read_processor, read_text_config

QUESTIONS = ("What is the capital of France?", "Write a short story about a lighthouse.")


@pytest.mark.slow
def test_greedy_tokens_of_real_weights_are_the_references(tmp_path):
    file = fetch(tmp_path)
    text = read_text_config(file)
    config, llama, processor = with_text(text), read_llama(file, text), read_processor(file)
    params = params_of(config, llama) | mp.init_params(jax.random.key(0), config)
    generator = mp.Generator(params, config=config, processor=processor, max_length=512, batch_size=2, eos_ids=())
    prompts = [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS]
    answers = generator.generate(prompts, max_new_tokens=128)
    assert "capital of France is Paris" in answers[0].text
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([processor.tokenizer.encode(prompt, add_special_tokens=False).ids])
        with torch.no_grad():
            theirs = llama.generate(ids, max_new_tokens=128, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert answer.ids == theirs[0, ids.shape[1] :].tolist()


@pytest.mark.slow
@compiled_code
def test_compiled_code_in_bfloat16_predicts_what_float32_does(tmp_path):
    """On 640 tokens of English, in four rows."""
    file = fetch(tmp_path)
    text = read_text_config(file)
    params = params_of(with_text(text), read_llama(file, text))
    prose = (Path(__file__).parents[2] / "README.md").read_text()
    ids = np.array(read_processor(file).tokenizer.encode(prose, add_special_tokens=False).ids[:640]).reshape(4, -1)
    table = params["text_model"]["embed_tokens"]["embedding"]
    exact, rounded = (logits_of(params, text, table.astype(dtype)[ids], dtype) for dtype in ("float32", "bfloat16"))
    divergence = jnp.sum(jnp.exp(exact) * (exact - rounded), axis=-1).mean()
    assert 0 < divergence <= tolerances.BFLOAT16_KL
    assert (exact.argmax(-1) == rounded.argmax(-1)).mean() >= 0.98


def logits_of(params, text, x, dtype):
    """Logits of the next token after each of (B, S) tokens, normalised, a token of each row at a time."""
    packed, cache = pack_decoder(params, text, dtype), init_packed_cache(text, len(x), 256, dtype)
    step = jax.jit(lambda x, positions, cache: decoder_step(packed, x, positions, cache, text), donate_argnums=2)
    found = []
    for place in range(x.shape[1]):
        logits, cache = step(x[:, place], np.full(len(x), place, np.int32), cache)
        found.append(jax.nn.log_softmax(logits))
    return jnp.stack(found, 1)
