"""What a template writes of a chat: every part, in the template's own order, or an error."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.text import VideoPlan
from tests.helpers.tokenizer import CHAT_TEMPLATE

ONLY_USER = (
    "{% for m in messages %}{% if m.role == 'user' %}User: {% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    "{% endfor %}"
)
IMAGES_FIRST = (
    "{% for m in messages %}{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text | trim | replace('&', 'and') }}{% endfor %}{% endfor %}"
)


def text(content):
    return {"type": "text", "text": content}


def with_template(model, template):
    return dataclasses.replace(model.ours, chat_template=template)


@pytest.mark.parametrize("dropped", ["User", "s", "?!", "yes", "es"])
def test_a_dropped_text_is_seen_even_where_the_same_letters_stand_elsewhere(dropped, model):
    chat = [{"role": "system", "content": dropped}, {"role": "user", "content": "yes?!"}]
    with pytest.raises(ValueError, match="drops the text part of message 0"):
        with_template(model, ONLY_USER).render(chat)


def test_a_template_may_strip_and_replace_what_a_text_holds(model):
    chat = [{"role": "user", "content": [text("  salt & pepper\n"), text("")]}]
    assert with_template(model, IMAGES_FIRST).render(chat) == "salt and pepper"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", "user: Hi"),
        ("{% for m in messages %}{{ 'Q ' + m['content'] }}{% endfor %}", "Q Hi"),
        ("{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% endif %}{% endfor %}", "SHi"),
        ("{% for m in messages %}{{ m.content[0].type }}: {{ m.content[0].text }}{% endfor %}", "text: Hi"),
        (CHAT_TEMPLATE, "<|im_start|>User: Hi<end_of_utterance>\nAssistant:"),
    ],
)
def test_a_string_stays_a_string_for_templates_that_write_strings(template, expected, model):
    assert with_template(model, template).render([{"role": "user", "content": "Hi"}]) == expected
    if "content[0]" not in template:
        return
    assert with_template(model, template).render([{"role": "user", "content": [text("Hi")]}]) == expected


def test_an_image_follows_its_part_where_the_template_moves_it(model, photos):
    """The text's own `<image>` stands second in what the template writes, although it is first in the chat."""
    own, given = photos["cat"], photos["rocket"]
    chat = [{"role": "user", "content": [text("<image>?"), {"type": "image", "image": own}]}]
    found = with_template(model, IMAGES_FIRST)([chat], [given], config=model.config).images
    np.testing.assert_array_equal(found[0], own)
    np.testing.assert_array_equal(found[1], given)


PARTS = st.one_of(
    st.lists(st.sampled_from(["a", "<image>", " ", "é", "\ue000", "\ue0000\ue001"]), max_size=3).map(
        lambda pieces: text("".join(pieces))
    ),
    st.sampled_from([{"type": "image"}, {"type": "image", "image": np.zeros((3, 3, 3), np.uint8)}]),
    st.just({"type": "video", "video": [np.zeros((3, 3, 3), np.uint8)], "plan": VideoPlan((0,), 1, 1)}),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=3))
def test_every_part_of_a_chat_is_in_its_text_in_order(model, contents):
    written = {"image": "<image>", "video": "<video>"}
    expected = [
        "".join(part["text"] if part["type"] == "text" else written[part["type"]] for part in c) for c in contents
    ]
    chat = [{"role": "user", "content": content} for content in contents]
    found = model.ours.render(chat, add_generation_prompt=False)
    places = [": " if content[0]["type"] != "image" else ":" for content in contents]
    turns = [f"User{place}{turn}<end_of_utterance>\n" for place, turn in zip(places, expected, strict=True)]
    assert found == "<|im_start|>" + "".join(turns)
    needed = sum(
        part == {"type": "image"} or part.get("text", "").count("<image>") for content in contents for part in content
    )
    inputs = model.ours([chat], [np.ones((3, 3, 3), np.uint8)] * needed, config=model.config)
    own = [part["type"] == "image" for content in contents for part in content if part.get("image") is not None]
    assert sum(not image.any() for image in inputs.images) == len(own)


def test_what_the_template_does_not_read_of_a_message_is_an_error(model):
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    chat = [{"role": "user", "content": "Weather?", "name": None}, calls]
    with pytest.raises(ValueError, match="does not know 'tool_calls' of message 1: leave that out"):
        model.ours.render(chat)
    template = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.name }}!{% endfor %}{% endfor %}"
    assert with_template(model, template).render(chat) == "Weather?f!"


def test_the_template_for_videos_is_for_checkpoints_that_lack_one(model, photos):
    video = {"type": "video", "video": [photos["cat"]], "plan": {"fps": 2, "frames_indices": [6], "width": 9}}
    chat = [{"role": "user", "content": [video]}]
    assert model.ours.render(chat).startswith("<|im_start|>User: <video>")
    assert with_template(model, None).render(chat) == model.ours.render(chat)
    own = "{% for m in messages %}Mine: {% for p in m.content %}<video>{% endfor %}{% endfor %}"
    assert with_template(model, own).render(chat) == "Mine: <video>"
    decoded = model.ours.decode(model.ours([chat], config=model.config).input_ids[0])
    assert "from a 0:00:03 [H:MM:SS] video." in decoded
    assert "Frame from 00:03:" in decoded

    class Llama:  # a tokenizer without SmolVLM's tokens
        def token_to_id(self, token):
            return None

    with pytest.raises(ValueError, match="drops the video part of message 0"):
        dataclasses.replace(model.ours, tokenizer=Llama()).render(chat)
