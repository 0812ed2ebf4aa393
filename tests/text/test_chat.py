"""Chats: rendered as the reference renders them, by the template that the checkpoint keeps."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from multipatch_jax.text import Processor
from tests.helpers.text import their_inputs
from tests.helpers.tokenizer import CHAT_TEMPLATE


@pytest.mark.parametrize("content", [["image", "text"], ["text", "image"], ["text"], ["image", "image", "text"]])
@pytest.mark.parametrize("generate", [True, False])
def test_a_chat_is_rendered_as_the_reference_does(content, generate, model, photos):
    parts = [{"type": "text", "text": 'Say "é" & <b>'} if kind == "text" else {"type": "image"} for kind in content]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "More."}]},
    ]
    text = model.ours.render(chat, add_generation_prompt=generate)
    assert text == model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
    images = [photos["cat"]] * content.count("image")
    if generate:
        got = model.ours([chat], images, config=model.config)
        np.testing.assert_array_equal(got.input_ids, their_inputs(model, [text], [images])["input_ids"])


def test_templates_may_use_what_the_references_environment_has(model):
    template = (
        "{% for m in messages %}\n  {% if m.role == 'stop' %}{% break %}{% endif %}\n"
        "{{ bos_token }}{{ m | tojson }}\n{% endfor %}"
    )
    chat = [{"role": "é<", "content": "a"}, {"role": "stop", "content": "b"}]
    ours = dataclasses.replace(model.ours, chat_template=template)
    assert ours.render(chat) == model.tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    template = "{% if tools is none and documents is none %}A{% else %}B{% endif %}{{ strftime_now('%Y') }}"
    ours = dataclasses.replace(model.ours, chat_template=template)
    assert ours.render(chat) == model.tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)


def test_the_first_special_token_is_not_doubled_in_a_rendered_chat(model, tmp_path):
    """The tokenizer here adds <|im_start|> itself, as Llama 3's adds its own; SmolVLM's template begins with it too."""
    shutil.copytree(model.folder, tmp_path / "bos")
    raw = json.loads((tmp_path / "bos/tokenizer.json").read_text())
    special = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": special},
    }
    (tmp_path / "bos/tokenizer.json").write_text(json.dumps(raw))
    processor = Processor.from_pretrained(tmp_path / "bos")
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert processor([chat], config=model.config).input_ids[0, :2].tolist() != [1, 1]
    assert processor(["Hi"], config=model.config).input_ids[0, 0] == 1


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "named", None])
def test_the_chat_template_is_found_wherever_checkpoints_keep_it(where, model, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model.folder / name, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "chat_template" not in settings
    if where == "chat_template.jinja":
        (tmp_path / where).write_text(CHAT_TEMPLATE)
    elif where == "chat_template.json":
        (tmp_path / where).write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    elif where is not None:
        templates = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]
        settings["chat_template"] = templates if where == "named" else CHAT_TEMPLATE
        settings["bos_token"] = {"content": "<|im_start|>", "lstrip": False}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    processor = Processor.from_pretrained(tmp_path)
    assert processor.chat_template == (CHAT_TEMPLATE if where else None)
    assert processor.special_tokens["bos_token"] == "<|im_start|>"
    assert processor.pad_token_id == 2
    if where is None:
        with pytest.raises(ValueError, match="no chat template"):
            processor.render([{"role": "user", "content": []}])


def test_a_chat_that_the_template_cannot_take_is_refused(model):
    for chat in ([{"role": "user", "content": []}], [{"role": "user", "content": [{"image": np.zeros(3)}]}], ["hello"]):
        with pytest.raises(ValueError, match="A chat must be messages"):
            model.ours.render(chat)
    stubborn = dataclasses.replace(model.ours, chat_template="{{ raise_exception('only one turn') }}")
    with pytest.raises(ValueError, match="only one turn"):
        stubborn.render([{"role": "user", "content": "x"}])
    broken = dataclasses.replace(model.ours, chat_template="{{ 1 // 0 }}")
    with pytest.raises(ValueError, match="this one was refused"):
        broken.render([{"role": "user", "content": "x"}])
    greedy = dataclasses.replace(model.ours, chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="A chat must be messages"):
        greedy.render([{"role": "user", "content": "x"}])
