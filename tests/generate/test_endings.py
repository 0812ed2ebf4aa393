"""How an answer ends, and which tokens its text has."""

import dataclasses
import json
import shutil
import types

import pytest
from tokenizers import AddedToken, Tokenizer

import multipatch_jax as mp
from tests.helpers.generators import make_generator

TEXT = "What is the capital of France?"


@pytest.fixture(scope="module")
def generator(talker):
    return make_generator(talker)


def test_an_answer_of_max_new_tokens(generator):
    (answer,) = generator.generate(["a"], max_new_tokens=7, logprobs=True)
    assert (answer.finish_reason, answer.num_prompt_tokens) == ("length", 1)
    assert len(answer.ids) == len(answer.logprobs) == 7
    assert max(answer.logprobs) <= 0
    assert set(answer.seconds) == {"encode", "prefill", "decode"}
    assert answer.text == generator.processor.decode(answer.ids)
    assert generator.generate(["a"], max_new_tokens=1)[0].ids == answer.ids[:1]
    assert generator.generate(["a"])[0].logprobs is None


def test_a_full_cache_ends_an_answer(talker):
    """A prompt and its answer have max_length tokens together; the tokens are those that a larger cache gives."""
    small = make_generator(talker, max_length=600)
    (cut,) = small.generate(["b" * 590], max_new_tokens=100)
    (whole,) = make_generator(talker).generate(["b" * 590], max_new_tokens=12)
    assert (cut.finish_reason, len(cut.ids)) == ("length", 10)
    assert cut.ids == whole.ids[:10]
    with pytest.raises(ValueError, match=r"1 to 599 tokens.*max_length=600, got 600 in chat 1: raise max_length"):
        small.generate(["b", "b" * 600])


def test_any_of_several_eos_ids_ends_an_answer(generator, talker):
    (free,) = generator.generate([TEXT], max_new_tokens=12)
    end = free.ids[5]
    stopping = make_generator(talker, eos_ids=(7, end))
    (answer,) = stopping.generate([TEXT], max_new_tokens=12)
    assert answer.ids == free.ids[: free.ids.index(end) + 1]
    assert answer.finish_reason == "stop"
    assert answer.text == talker.processor.decode(answer.ids[:-1])


def test_special_tokens_stay_if_they_are_asked_for(talker):
    """As in document models, whose tags are special tokens; the one that ends an answer is no part of it."""
    (plain,) = make_generator(talker).generate([TEXT], max_new_tokens=6)
    tag, end = plain.ids[2], plain.ids[5]
    tokenizer = Tokenizer.from_str(talker.processor.tokenizer.to_str())
    names = [str(tokenizer.id_to_token(one)) for one in (tag, end)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    processor = dataclasses.replace(talker.processor, tokenizer=tokenizer)
    generator = make_generator(types.SimpleNamespace(**vars(talker) | {"processor": processor}), eos_ids=(end,))
    (without,) = generator.generate([TEXT], max_new_tokens=6)
    (kept,) = generator.generate([TEXT], max_new_tokens=6, skip_special_tokens=False)
    assert without.ids == kept.ids == plain.ids[: plain.ids.index(end) + 1]
    assert kept.text == tokenizer.decode(kept.ids[:-1], skip_special_tokens=False)
    assert names[0] in kept.text
    assert names[1] not in kept.text
    assert without.text == tokenizer.decode(kept.ids[:-1], skip_special_tokens=True) != kept.text


def test_the_eos_ids_of_a_folder(talker, tmp_path):
    (free,) = make_generator(talker).generate(["a"], max_new_tokens=9)
    folder = shutil.copytree(talker.folder, tmp_path / "copy")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, free.ids[4]]}))
    (answer,) = mp.Generator.from_pretrained(folder, max_length=640, batch_size=3).generate(["a"], max_new_tokens=9)
    assert answer.ids == free.ids[: free.ids.index(free.ids[4]) + 1]
    assert answer.finish_reason == "stop"


def test_stops_end_an_answer_before_them(generator):
    (free,) = generator.generate(["a"], max_new_tokens=10)
    stop = free.text[len(free.text) // 2 :][:9]  # it lies in several tokens
    (answer,) = generator.generate(["a"], max_new_tokens=10, stop=["never", stop])
    assert answer.finish_reason == "stop"
    assert answer.text == free.text[: free.text.index(stop)]
    assert answer.ids == free.ids[: len(answer.ids)]
    assert len(answer.ids) < 10


def test_should_stop_ends_an_answer(generator):
    seen = []

    def should_stop(text):
        seen.append(text)
        return len(text) > 30

    (answer,) = generator.generate(["a"], max_new_tokens=10, should_stop=should_stop)
    assert answer.finish_reason == "stop"
    assert answer.text == seen[-1]
    assert len(seen[-2]) <= 30 < len(seen[-1])
