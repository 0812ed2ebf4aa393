"""LoRA on decoder and connector learns to say a picture's colour; merged and exported, transformers says the same."""

import functools
import time
from typing import Any

import jax
import optax
import pytest
import torch
from transformers import AutoModelForImageTextToText

import multipatch_jax as mp
from tests.helpers.colours import example, make_colour_model
from tests.helpers.text import reference_processor
from tests.helpers.tokenizer import make_tokenizer

UNSEEN = [example(seed) for seed in range(16)]  # pictures that no batch has


def learn(folder, out, steps):
    """Trains, exports to `out`, and returns the loss of each step."""
    config, params = mp.from_pretrained(folder, parts="all")
    processor = mp.Processor.from_pretrained(folder)
    params = mp.params.add_lora(jax.random.key(0), params, kernels="^(text_model|lm_head|connector)/", rank=8)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps))
    loss_fn = functools.partial(mp.train.language_model_loss, config=config)
    step = mp.train.make_train_step(loss_fn, optimizer, config=config, trainable="lora", max_norm=1.0)
    state = mp.train.init_train_state(params, optimizer, trainable="lora", rng=jax.random.key(1))

    def batch_at(number):
        chats, pictures, _ = zip(*(example(1000 + 8 * number + row) for row in range(8)), strict=True)
        return mp.train.chat_batch(chats, pictures, config=config, processor=processor, length=40, num_tiles=1)

    losses = []
    callback = lambda _, metrics: losses.append(metrics["loss"])  # noqa: E731
    state = mp.train.fit(step, state, batch_at, num_steps=steps, callback=callback)
    mp.export_hf(out, config, state.params, base=folder)  # merges
    return losses


def answers(folder, count):
    """Our answers about the first unseen pictures."""
    generator = mp.Generator.from_pretrained(folder, max_length=64, batch_size=4)
    chats, pictures, _ = zip(*UNSEEN[:count], strict=True)
    return [one.ids for one in generator.generate([chat[:1] for chat in chats], pictures, max_new_tokens=8)]


@torch.no_grad()
def their_answers(folder, count):
    """Those of transformers, from the same folder."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    config, ours = mp.from_pretrained(folder)[0], mp.Processor.from_pretrained(folder)
    processor, _ = reference_processor(make_tokenizer(), config)
    found = []
    for chat, picture, _ in UNSEEN[:count]:
        inputs = processor(text=[ours.render(chat[:1])], images=[[picture]], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=2)
        found.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def test_a_few_steps_make_it_better_and_transformers_answers_alike(tmp_path):
    folder = make_colour_model(tmp_path / "model").folder
    losses = learn(folder, tmp_path / "out", steps=12)
    assert losses[-1] < 0.7 * losses[0]
    assert answers(tmp_path / "out", 4) == their_answers(tmp_path / "out", 4)


@pytest.mark.slow
def test_it_learns_the_colours(tmp_path):
    """In a minute on two cores, compilation included; the time is printed, not asserted."""
    folder = make_colour_model(tmp_path / "model").folder
    start = time.perf_counter()
    losses = learn(folder, tmp_path / "out", steps=120)
    print(f"{time.perf_counter() - start:.0f} s")
    assert losses[-1] < 0.05
    processor, found = mp.Processor.from_pretrained(folder), answers(tmp_path / "out", len(UNSEEN))
    assert [processor.decode(ids).strip() for ids in found] == [colour for *_, colour in UNSEEN]
    assert found == their_answers(tmp_path / "out", len(UNSEEN))
