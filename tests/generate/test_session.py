"""A session's answers are those of fresh chats, and what has been read is not computed again."""

import jax
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.encode import forbid_compilations
from multipatch_jax.generate import session as sessions

QUESTIONS = ["What is it?", "Which colour has it? " * 3, "Why?"]


@pytest.fixture(scope="module")
def generator(talker):
    return mp.Generator(talker.params, config=talker.config, processor=talker.processor, max_length=768, eos_ids=())


@pytest.fixture(scope="module")
def photos(photo):
    return [photo, photo[:90, :200], photo[::2, ::3]]


def fresh(generator, session, question, images, **settings):
    """The answer to the whole chat with one more question, by `generate`."""
    content = [*({"type": "image"} for _ in images[len(of_chat(session)) :]), {"type": "text", "text": question}]
    chat = [*session.chat, {"role": "user", "content": content}]
    (answer,) = generator.generate([chat], images, **settings)
    return answer


def of_chat(session):
    return [part for message in session.chat for part in message["content"] if part["type"] == "image"]


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.3}], ids=["greedy", "drawn"]
)
def test_answers_are_those_of_fresh_chats(generator, photos, settings):
    """Of three questions, the last two computed only what is new: no image twice, and no token of the chat before."""
    session = generator.session(photos[:2])
    read = len(session._ids)
    known: list[np.ndarray] = photos[:2]
    for number, question in enumerate(QUESTIONS):
        new = photos[2:] if number == 1 else []
        known = known + new
        expected = fresh(generator, session, question, known, max_new_tokens=12, **settings)
        answer = session.ask(question, new, max_new_tokens=12, **settings)
        assert (answer.text, answer.ids) == (expected.text, expected.ids)
        assert answer.num_prompt_tokens == expected.num_prompt_tokens
        assert answer.num_encoded == 0  # `generate` has just encoded the third
        assert answer.num_cached_tokens >= read
        read = answer.num_prompt_tokens
    assert [message["role"] for message in session.chat] == ["user", "assistant"] * 3
    assert len(of_chat(session)) == 3


def test_what_was_read_is_not_computed_again(generator, photos, monkeypatch):
    """Counted at the engine's door: tokens of chunks, and images of the encoder."""
    prefilled, encoded = [], []
    whole, encode = sessions.run.__globals__["admit"], generator._model.visual_tokens.of

    def admit(params, slots, chunk, **options):
        prefilled.append(int(chunk.num_real))
        return whole(params, slots, chunk, **options)

    def of(sources):
        tokens, number = encode(sources)
        encoded.append(number)
        return tokens, number

    monkeypatch.setitem(sessions.run.__globals__, "admit", admit)
    monkeypatch.setattr(generator._model.visual_tokens, "of", of)
    new = [np.random.default_rng(9).integers(0, 256, (300, 400, 3), np.uint8)]
    session = generator.session(new)
    assert (sum(encoded), sum(prefilled)) == (1, len(session._ids))
    read = sum(prefilled)
    assert read > 60
    for question in QUESTIONS:
        prefilled.clear()
        encoded.clear()
        answer = session.ask(question, max_new_tokens=6)
        assert sum(encoded) == answer.num_encoded == 0
        assert sum(prefilled) == answer.num_prompt_tokens - answer.num_cached_tokens <= answer.num_prompt_tokens - read
        read = answer.num_prompt_tokens


def test_a_fork_does_not_disturb_its_parent(generator, photos):
    session = generator.session(photos[:1])
    session.ask(QUESTIONS[0], max_new_tokens=8)
    expected = [fresh(generator, session, question, photos[:1], max_new_tokens=8) for question in QUESTIONS]
    forks = [session.fork() for _ in QUESTIONS]
    found = [fork.ask(question, max_new_tokens=8) for fork, question in zip(forks, QUESTIONS, strict=True)]
    assert [answer.ids for answer in found] == [answer.ids for answer in expected]
    assert {answer.num_encoded for answer in found} == {0}
    assert len(session.chat) == 2
    assert session.ask(QUESTIONS[1], max_new_tokens=8).ids == expected[1].ids


def test_a_question_that_fails_leaves_the_chat_as_it_was(generator, photos):
    session = generator.session(photos[:1])
    expected = session.fork().ask("Why?", max_new_tokens=8)
    other = np.random.default_rng(4).integers(0, 256, photos[1].shape, np.uint8)
    left = session.stream("What?", [other], max_new_tokens=8)
    next(left)
    for call in (session.fork, lambda: session.ask("Why?")):
        with pytest.raises(ValueError, match="answers one question at a time"):
            call()
    left.close()
    # Of the question that was left, the cache holds another image in the places of this one.
    alike = fresh(generator, session, "What?", [photos[0], photos[1]], max_new_tokens=8)
    assert session.fork().ask("What?", [photos[1]], max_new_tokens=8).ids == alike.ids
    with pytest.raises(ZeroDivisionError):
        session.ask("What?", max_new_tokens=8, should_stop=lambda text: 1 // 0)
    with pytest.raises(ValueError, match="Unknown setting"):
        session.ask("What?", tone="kind")
    assert session.chat == []
    for array in jax.tree.leaves(session._held.slots):  # as by an interrupt within a move
        array.delete()
    answer = session.ask("Why?", max_new_tokens=8)
    assert (answer.ids, answer.num_cached_tokens, answer.num_encoded) == (expected.ids, 0, 0)


def test_a_stream_of_an_older_chat_is_refused(generator):
    session = generator.session()
    old = session.stream("What?", max_new_tokens=4)
    session.ask("Why?", max_new_tokens=4)
    with pytest.raises(ValueError, match="chat has gone on"):
        next(old)


def test_a_generated_image_token_is_no_image(generator, photos):
    """Its column holds no visual token, so a later image must not take it for its own."""
    session = generator.session()
    answer = session.ask("What?", max_new_tokens=4)
    session._ids = np.concatenate([session._ids[: answer.num_prompt_tokens], np.full(3, sessions.NO_ID, np.int32)])
    expected = fresh(generator, session, "Why?", [photos[1]], max_new_tokens=8)
    assert session.ask("Why?", [photos[1]], max_new_tokens=8).ids == expected.ids


def test_a_session_is_as_long_as_the_generator(talker):
    generator = mp.Generator(
        talker.params, config=talker.config, processor=talker.processor, max_length=160, eos_ids=()
    )
    session = generator.session()
    answer = session.ask("a" * 100, max_new_tokens=100)
    assert answer.finish_reason == "length"
    assert answer.num_prompt_tokens + len(answer.ids) == 160
    with pytest.raises(ValueError, match=r"1 to 159 tokens.*max_length=160"):
        session.ask("Why?")
    assert len(session.chat) == 2
    with pytest.raises(ValueError, match=r"1 to 159 tokens"):
        generator.session([np.zeros((400, 400, 3), np.uint8)] * 4)


@pytest.mark.parametrize(
    ("question", "images", "message"),
    [
        (3, [], "question must be a str"),
        ("What?", "cat.png", "must be a list of images, got str"),
        ("What?", np.zeros((8, 8, 3), np.uint8), r"must be a list of images, got ndarray: pass \[image\]"),
        ("What?", bytearray(b"a file"), "must be a list of images, got bytearray"),
        ("What?", 3, "list"),
    ],
)
def test_what_does_not_fit_is_refused_before_device_work(question, images, message, generator, compilations):
    session = generator.session()
    compilations()
    with pytest.raises(ValueError, match=message):
        session.ask(question, images)
    assert not compilations()


def test_images_are_remembered_up_to_a_number_of_bytes(talker, photos, monkeypatch):
    generator = mp.Generator(talker.params, config=talker.config, processor=talker.processor, max_length=768)
    known = generator._model.visual_tokens
    assert [generator.generate(["<image>"], [photos[1]])[0].num_encoded for _ in range(2)] == [1, 0]
    monkeypatch.setattr("multipatch_jax.generate.visual_tokens.REMEMBERED", known._bytes)
    assert generator.generate(["<image>"], [photos[1][1:]])[0].num_encoded == 1
    assert generator.generate(["<image>"], [photos[1]])[0].num_encoded == 1
    assert len(known._known) == 1


def test_nothing_compiles_after_warmup(talker, photos):
    generator = mp.Generator(talker.params, config=talker.config, processor=talker.processor, max_length=768)
    generator.warmup()
    with forbid_compilations():
        session = generator.session(photos[:1])
        session.fork().ask("What?", photos[1:], max_new_tokens=3)
        session.ask("Why?", max_new_tokens=3)
