"""Answers: that they do not depend on their neighbours, that nothing compiles, and what is refused."""

import dataclasses
import gc
import re

import jax
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.encode import forbid_compilations
from multipatch_jax.generate import Answer
from tests.helpers.generators import make_generator

TEXTS = ["a", "What is the capital of France?", "The capital of France is " * 9, "b" * 150]


@pytest.fixture(scope="module")
def generator(talker):
    return make_generator(talker)


def without_seconds(answers: list[Answer]) -> list[Answer]:
    return [dataclasses.replace(answer, seconds={}) for answer in answers]


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours, streams, and calls one after another.


def test_an_answer_does_not_depend_on_its_neighbours(generator, photo):
    """Seven chats over three slots, in two orders, and each alone; with images, drawn and greedy."""
    chats = [*TEXTS, "<image> What?", "Two: <image> and <image>.", "c"]
    images = [[], [], [], [], [photo], [photo[:90, :60], photo[:40]], []]
    settings = {"temperature": 0.9, "top_k": 50, "repetition_penalty": 1.2, "max_new_tokens": 8, "logprobs": True}
    seeds = list(range(7))
    together = without_seconds(generator.generate(chats, images, seed=seeds, **settings))
    turned = without_seconds(generator.generate(chats[::-1], images[::-1], seed=seeds[::-1], **settings))
    alone = [
        without_seconds(generator.generate([chat], own, seed=seed, **settings))[0]
        for chat, own, seed in zip(chats, images, seeds, strict=True)
    ]
    for found in (turned[::-1], alone):
        for one, expected in zip(found, together, strict=True):
            assert one.ids == expected.ids
            assert one.logprobs is not None
            assert expected.logprobs is not None
            np.testing.assert_allclose(one.logprobs, expected.logprobs, rtol=1e-5)  # in another row of the batch
    assert len({tuple(answer.ids) for answer in together}) == 7


def test_a_stream_adds_up_to_the_answer(generator, photo):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    (expected,) = make_answers(generator, chat, photo)
    stream, pieces = generator.stream(chat, [photo[:40, :50]], max_new_tokens=12), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            answer = end.value
            break
    assert "".join(pieces) == answer.text == expected.text
    assert answer.ids == expected.ids
    assert len(pieces) > 3


def make_answers(generator, chat, photo):
    return generator.generate([chat], [photo[:40, :50]], max_new_tokens=12)


def test_calls_may_be_left_and_mixed(generator):
    """A stream that goes on beside other calls, one that is left, and a call that fails: later answers are right."""
    expected = generator.generate(["a", "b"], max_new_tokens=9)
    one, left = generator.stream("a", max_new_tokens=9), generator.stream("c", max_new_tokens=9)
    first = next(one)
    next(left)
    with pytest.raises(ZeroDivisionError):
        generator.generate(["a", "b"], max_new_tokens=9, should_stop=lambda text: 1 // 0)
    assert generator.generate(["b"], max_new_tokens=9)[0].ids == expected[1].ids
    left.close()
    assert first + "".join(one) == expected[0].text
    assert [answer.ids for answer in generator.generate(["a", "b"], max_new_tokens=9)] == [a.ids for a in expected]


# ---------------------------------------------------------------------------------------------------------------------
# Nothing compiles, and memory stays flat.


def mixed_requests(count: int, longest: int, seed: int) -> tuple[list[str], list[list[np.ndarray]], list[dict]]:
    """Texts of 1 to `longest` tokens, 0 to 3 images of any size for each, and settings of every kind."""
    chance = np.random.default_rng(seed)
    texts, images, settings = [], [], []
    for _ in range(count):
        own = [chance.integers(0, 256, (*chance.integers(8, 200, 2), 3), np.uint8) for _ in range(chance.integers(4))]
        own = own if chance.random() < 0.5 else []
        length = int(np.exp(chance.uniform(0, np.log(longest))))
        texts.append("<image>" * len(own) + "".join(chance.choice(list("abcdefgh .,"), length)))
        images.append(own)
        setting = {"max_new_tokens": int(chance.integers(1, 12)), "seed": int(chance.integers(1000))}
        for name, values in {
            "temperature": (0.0, 0.7, 1.5),
            "top_k": (None, 1, 40),
            "top_p": (None, 0.5, 1.0),
            "min_p": (None, 0.1),
            "repetition_penalty": (1.0, 1.2),
            "stop": ((), "q", ["q", "zz"]),
            "grammar": (
                None,
                re.compile("[a-z]{3,}"),
                {"type": "array", "items": {"enum": ["é", 1]}},
                "start: /[0-9]+/",
            ),
        }.items():
            setting[name] = values[chance.integers(len(values))]
        settings.append(setting)
    return texts, images, settings


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.parametrize(
    ("count", "longest", "max_length"),
    [(16, 250, 640), pytest.param(200, 1500, 2048, marks=pytest.mark.slow)],
    ids=["16", "200"],
)
def test_after_warmup_nothing_compiles_and_memory_is_flat(count, longest, max_length, talker):
    """Groups of 1 to 8 chats over three slots; each group has settings of its own. A video comes last."""
    generator = make_generator(talker, max_length=max_length)
    generator.warmup()
    texts, images, settings = mixed_requests(count, longest, seed=1)
    answers, used, place = [], [], 0
    with forbid_compilations():
        for group in range(count):
            here = slice(place, place + group % 8 + 1)
            if place >= count:
                break
            answers += generator.generate(texts[here], images[here], **settings[place])
            used.append(live_bytes())
            place = here.stop
        frames = np.random.default_rng(2).integers(0, 256, (3, 50, 70, 3), np.uint8)
        video = {"type": "video", "video": frames, "fps": 1}
        generator.generate([[{"role": "user", "content": [video]}]], max_new_tokens=2)
    assert len(answers) == count
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    assert max(used) - min(used) < 1e5  # bytes
    assert sum(len(answer.ids) for answer in answers) > count


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("chats", "options", "message"),
    [
        (["<image>"], {}, r"got \[1\] <image> by text, 1 in all, and 0 images"),
        (["a"], {"images": [np.zeros((9, 9, 3), np.uint8)]}, "0 in all, and 1 images"),
        ("a", {}, r"pass \[text\]"),
        ([], {}, r"pass \[text\]"),
        (3, {}, r"pass \[text\]"),
        (["a", ""], {}, "A prompt must have at least one token, got an empty text in chat 1"),
        (["a" * 640], {}, "A prompt must have 1 to 639 tokens, .* got 640 in chat 0: raise max_length"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens must be a positive number of tokens, got 0"),
        (["a"], {"temperature": -1}, "temperature must be a finite number of at least 0, got -1"),
        (["a"], {"top_p": 0}, "top_p must be None or a number above 0 and at most 1, got 0"),
        (["a"], {"stop": 3}, "stop must be a text or a list of texts"),
        (["a"], {"temprature": 1}, "Unknown setting 'temprature'"),
        (["a"], {"seed": [1, 2]}, "one for each of 1 chats, got 2"),
        ([[{"role": "user", "content": [{"type": "sound"}]}]], {}, 'The "type" of part 0'),
    ],
)
def test_what_does_not_fit_is_refused_before_device_work(chats, options, message, generator, compilations):
    with pytest.raises(ValueError, match=message):
        generator.generate(chats, options.pop("images", ()), **options)
    assert not compilations()


def test_a_stream_is_checked_by_the_call_itself(generator):
    with pytest.raises(ValueError, match="max_new_tokens"):
        generator.stream("a", max_new_tokens=0)


def test_a_generator_of_parts_that_do_not_fit_is_refused(talker, compilations):
    def make(params=talker.params, **options):
        mp.Generator(params, **{"config": talker.config, "processor": talker.processor} | options)

    with pytest.raises(ValueError, match='parts="all"'):
        make({name: talker.params[name] for name in ("vision_model", "connector")})
    with pytest.raises(ValueError, match="text"):
        make(config=dataclasses.replace(talker.config, text=None))
    with pytest.raises(ValueError, match="text"):
        make(config=dataclasses.replace(talker.config, embedding_size=8))
    with pytest.raises(ValueError, match="max_length must be a positive number of tokens, got 0"):
        make(max_length=0)
    with pytest.raises(ValueError, match="batch_size must be a positive number of slots, got True"):
        make(batch_size=True)
    with pytest.raises(ValueError, match="processor must be a Processor, got 'a'"):
        make(processor="a")
    with pytest.raises(ValueError, match="An id of eos_ids must be an integer"):
        make(eos_ids=["a"])
    with pytest.raises(ValueError, match=r"compute must be an mp\.Compute"):
        make(compute="bfloat16")
    assert not compilations()


def test_a_tokenizer_of_another_model_is_refused(talker):
    text = dataclasses.replace(talker.config.text, vocab_size=49200)
    config = dataclasses.replace(talker.config, text=text)
    params = jax.tree.map(lambda x: x, talker.params)
    params["text_model"]["embed_tokens"]["embedding"] = params["text_model"]["embed_tokens"]["embedding"][:49200]
    params["lm_head"] = {"kernel": params["lm_head"]["kernel"][:, :49200]}
    generator = mp.Generator(params, config=config, processor=talker.processor)
    with pytest.raises(ValueError, match="0 to 49199, got 49279 in chat 1: load the processor from the model's own"):
        generator.generate(["a", "<end_of_utterance>"])


def test_a_template_that_fails_is_refused(talker, compilations):
    broken = dataclasses.replace(talker.processor, chat_template="{{ raise_exception('no') }}")
    generator = mp.Generator(talker.params, config=talker.config, processor=broken)
    with pytest.raises(ValueError, match="got its error: no"):
        generator.generate([[{"role": "user", "content": "a"}]])
    assert not compilations()


def test_logits_that_are_not_finite_are_told(talker):
    params = jax.tree.map(lambda x: x, talker.params)
    params["text_model"]["norm"] = {"scale": params["text_model"]["norm"]["scale"] * np.nan}
    generator = mp.Generator(params, config=talker.config, processor=talker.processor, max_length=640, batch_size=3)
    with pytest.raises(ValueError, match="Logits must be finite numbers, and those of token 0 of an answer are not"):
        generator.generate(["a"])


def test_a_bar_counts_chats_and_tokens(talker, capsys):
    generator = make_generator(talker)
    answers = generator.generate(["one", "two"], max_new_tokens=3)
    assert capsys.readouterr().err == ""
    again = generator.generate(["one", "two"], max_new_tokens=3, progress=True)
    assert [answer.ids for answer in again] == [answer.ids for answer in answers]
    shown = capsys.readouterr().err
    assert "answering: 100%" in shown
    assert "| 2/2 [" in shown
    assert f"{sum(len(answer.ids) for answer in answers)} tokens" in shown
