"""Answers found from a chat's structure are those that the reference marks by `{% generation %}` in a like template."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import multipatch_jax as mp
from tests.helpers.text import their_assistant_mask
from tests.helpers.tokenizer import CHAT_TEMPLATE

# SmolVLM's template, with marks around what it writes behind "Assistant:" up to the end of the turn.
MARKED = CHAT_TEMPLATE.replace(
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}",
    "{{ ':' }}{% if message['role'] == 'assistant' %}{% generation %}{{ ' ' }}{{ message['content'][0]['text'] }}"
    "<end_of_utterance>{% endgeneration %}{{ '\n' }}{% continue %}{% endif %}"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}",
)


def text(value):
    return {"type": "text", "text": value}


def turn(question, answer, images=0):
    content = [{"type": "image"}] * images + [text(question)]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": [text(answer)]}]


CHATS = {
    "one": turn("What?", "Là, là!\nYes."),
    "two turns": [*turn("What?", "A cat.", images=1), *turn("And?", "  Two  spaces ", images=2)],
    "a system's message": [{"role": "system", "content": [text("Be brief.")]}, *turn("?", "é")],
    "the assistant begins": [*turn("?", "Hello")[1:], *turn("Who?", "I.")],
    "the prompt within the answer": turn("?", "Assistant: no, User: <end_of_utterance>\nAssistant:"),
}


@pytest.mark.parametrize("name", CHATS)
def test_they_are_the_references(name, model, photo):
    chat = CHATS[name]
    images = [photo] * sum(part["type"] == "image" for message in chat for part in message["content"])
    found = model.ours([chat], images, config=model.config)
    marked = dataclasses.replace(model.ours, chat_template=MARKED)
    assert marked.render(chat) == model.ours.render(chat)
    ids, mask = their_assistant_mask(model, chat, MARKED, images)
    np.testing.assert_array_equal(found.input_ids[0], ids)
    np.testing.assert_array_equal(found.assistant_mask[0], mask)
    np.testing.assert_array_equal(found.assistant_mask, marked([chat], images, config=model.config).assistant_mask)


def test_an_answer_begins_where_the_prompt_for_it_ends(model):
    """What is learned is what a generator has to write: the ids behind those of the prompt."""
    chat = turn("What?", "A cat.")
    found = model.ours([chat], config=model.config)
    prompt = model.ours([chat[:1]], config=model.config)
    assert prompt.assistant_mask is None
    start = prompt.input_ids.shape[1]
    np.testing.assert_array_equal(found.input_ids[0, :start], prompt.input_ids[0])
    ids = found.input_ids[0, start:-1]  # the last is the line break behind the turn
    np.testing.assert_array_equal(found.assistant_mask[0], [0] * start + [1] * len(ids) + [0])
    assert model.tokenizer.decode(ids) == " A cat.<end_of_utterance>"


def test_marks_decide_where_the_template_has_them(model):
    """Here only what the assistant says is marked, without the end of its turn."""
    only = MARKED.replace("<end_of_utterance>{% endgeneration %}", "{% endgeneration %}<end_of_utterance>")
    found = dataclasses.replace(model.ours, chat_template=only)([turn("What?", "A cat.")], config=model.config)
    assert model.tokenizer.decode(found.input_ids[0][found.assistant_mask[0] == 1]) == " A cat."


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages | reverse %}{{ m['role'] }}:{{ m['content'][0]['text'] }}\n{% endfor %}",
        "{% for m in messages %}{% if loop.last %}{{ '!' }}{% endif %}{{ m['content'][0]['text'] }}{% endfor %}",
        "{% if messages | length < 2 %}{{ raise_exception('too short') }}{% endif %}"
        "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}",
    ],
)
def test_a_template_that_writes_a_chat_in_another_order_gives_none(template, model):
    processor = dataclasses.replace(model.ours, chat_template=template)
    assert processor([turn("What?", "A cat.")], config=model.config).assistant_mask is None


def test_labels_without_any_answer_are_refused():
    ids, mask = np.full((2, 5), 7), np.ones((2, 5), int)
    cases: list[dict[str, Any]] = [{"assistant_mask": 0 * mask}, {"attention_mask": 0 * mask}, {"image_token_id": 7}]
    options: dict[str, Any] = {"image_token_id": 9}
    for arguments in cases:
        with pytest.raises(ValueError, match="must have something to learn, and all 10 of these are images, padding"):
            mp.text.labels_for(ids, **options | arguments)
    assert (np.asarray(mp.text.labels_for(ids, image_token_id=9, assistant_mask=mask)) == 7).all()
