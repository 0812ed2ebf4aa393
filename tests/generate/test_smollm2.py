"""SmolLM2-135M's own weights: the reference's 128 greedy tokens, and a sensible answer."""

import jax
import pytest
import torch

import multipatch_jax as mp
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
