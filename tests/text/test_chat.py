"""Chats: rendered as the reference renders them, by the template that the checkpoint keeps."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.text import Processor
from tests.helpers.text import their_assistant_mask, their_inputs
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
    chat = [{"role": "é<", "content": [{"type": "text", "text": 'a "b"\nc'}]}, {"role": "stop", "content": []}]
    ours = dataclasses.replace(model.ours, chat_template=template)
    assert ours.render(chat) == model.tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    template = "{% if tools is none and documents is none %}A{% else %}B{% endif %}{{ strftime_now('%Y') }}"
    ours, chat = dataclasses.replace(model.ours, chat_template=template), [{"role": "user", "content": []}]
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
    ids = processor([chat], config=model.config).input_ids
    assert ids[0, :2].tolist() != [1, 1]
    np.testing.assert_array_equal(processor([processor.render(chat)], config=model.config).input_ids, ids)
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


def text(content):
    return {"type": "text", "text": content}


def test_a_content_that_is_a_string_is_one_text(model):
    for chat in ([{"role": "user", "content": "Capital of France?"}], [{"role": "user", "content": ""}]):
        parts = [{**message, "content": [text(message["content"])]} for message in chat]
        assert model.ours.render(chat) == model.ours.render(parts)
    assert "Capital of France?" in model.ours.render([{"role": "user", "content": "Capital of France?"}])


def test_a_chat_that_ends_with_the_answer_gets_no_prompt_for_another(model):
    question, answer = {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Three."}
    assert model.ours.render([question]).endswith("Assistant:")
    assert model.ours.render([question, answer]).endswith("Three.<end_of_utterance>\n")
    assert model.ours.render([question, answer], add_generation_prompt=True).endswith("Assistant:")
    for chat, generate in (([question, answer], None), ([question, answer], True), ([question], False)):
        ids = model.tokenizer(model.ours.render(chat, add_generation_prompt=generate))["input_ids"]
        got = model.ours([chat], config=model.config, add_generation_prompt=generate)
        assert got.input_ids[0].tolist() == ids
        options = {"config": model.config, "processor": model.ours, "add_generation_prompt": generate}
        assert mp.prepare_inputs(model.params, [chat], **options)["attention_mask"].shape == (1, len(ids))
    with pytest.raises(ValueError, match="add_generation_prompt must be True, False or None"):
        model.ours([[question]], config=model.config, add_generation_prompt="yes")


TEMPLATE_WITH_GENERATION = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if p['type'] == 'image' %}<image>"
    "{% elif m['role'] == 'assistant' %}{% generation %}{{ p['text'] }}<end_of_utterance>{% endgeneration %}"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
)


def test_what_the_assistant_says_is_marked_as_in_the_reference(model, photos):
    ours = dataclasses.replace(model.ours, chat_template=TEMPLATE_WITH_GENERATION)
    chat = [
        {"role": "user", "content": [text("Où <est> it?")]},
        {"role": "assistant", "content": [text("Là, là!\nYes.")]},
        {"role": "user", "content": "More."},
        {"role": "assistant", "content": [text("No\ufdd0")]},
    ]
    got = ours([chat, "short"], config=model.config, padding_side="left")
    plain = [{**m, "content": [text(m["content"])] if isinstance(m["content"], str) else m["content"]} for m in chat]
    plain[-1] = {"role": "assistant", "content": [text("No\ufffd")]}  # a noncharacter cannot be written
    expected = model.tokenizer.apply_chat_template(
        plain, chat_template=TEMPLATE_WITH_GENERATION, return_assistant_tokens_mask=True, return_dict=True
    )
    assert got.input_ids[0].tolist() == expected["input_ids"]
    assert got.assistant_mask[0].tolist() == expected["assistant_masks"]
    assert 0 < got.assistant_mask[0].sum() < got.attention_mask[0].sum()
    assert not got.assistant_mask[1].any()
    assert ours(["a text"], config=model.config).assistant_mask is None
    assert model.ours([chat[:1]], config=model.config).assistant_mask is None


def test_marks_are_the_references_after_images_too(model, photos):
    ours, image = dataclasses.replace(model.ours, chat_template=TEMPLATE_WITH_GENERATION), {"type": "image"}
    chat = [
        {"role": "user", "content": [image, text("Où?"), image]},
        {"role": "assistant", "content": [text("Là, là!\nA cat.")]},
        {"role": "user", "content": [text("And?"), image]},
        {"role": "assistant", "content": [text("é")]},
    ]
    images = [photos["cat"], photos["rocket"], photos["coffee"]]
    ids, mask = their_assistant_mask(model, chat, TEMPLATE_WITH_GENERATION, images)
    got = ours([chat], images, config=model.config)
    np.testing.assert_array_equal(got.input_ids[0], ids)
    np.testing.assert_array_equal(got.assistant_mask[0], mask)


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_are_marked_after_images_too(side, model, photos):
    ours = dataclasses.replace(model.ours, chat_template=TEMPLATE_WITH_GENERATION)
    image = {"type": "image"}
    chat = [{"role": "user", "content": [image, text("What?"), image]}, {"role": "assistant", "content": "A cat."}]
    longer = [*chat, {"role": "user", "content": "And?"}]
    images = [photos["cat"], photos["rocket"]] * 2
    got = ours([chat, longer], images, config=model.config, padding_side=side)
    for ids, mask in zip(got.input_ids, got.assistant_mask, strict=True):
        assert model.tokenizer.decode(ids[mask == 1]) == "A cat.<end_of_utterance>"
    labels = mp.text.labels_for(got.input_ids, image_token_id=49190, assistant_mask=got.assistant_mask)
    np.testing.assert_array_equal(labels, np.where(got.assistant_mask == 1, got.input_ids, -100))


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("hello", "list of at least one message"),
        ([], "list of at least one message"),
        (["hello"], 'must have a "role" and a "content", got .hello. as message 0'),
        ([{"role": "user"}], "content of message 0 must be a string or a list of parts, got NoneType"),
        ([{"content": "a"}], r"got an object with the keys \['content'\] as message 0"),
        ([{"role": "user", "content": 5}], "content of message 0 must be a string or a list of parts, got int"),
        ([{"role": "user", "content": ["hi"]}], r'"type" of part 0 of message 0 .* got .hi.'),
        ([{"role": "user", "content": [{"image": np.zeros(3)}]}], "part 0 of message 0 must be one of text, image"),
        (
            [{"role": "user", "content": [text("a"), {"type": "audio"}]}],
            """part 1 of message 0 .* got "type": 'audio'""",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be a string, got NoneType"),
        (
            [{"role": "user", "content": [{"type": "text", "content": "a"}]}],
            r"may have text, got \['content'\] in part 0",
        ),
        ([{"role": "user", "content": [text("A <video>?")]}], "has <video> in its text"),
        ([{"role": {}, "content": "a"}], "message 0"),
    ],
)
def test_chats_that_are_not_understood_are_refused(chat, message, model):
    with pytest.raises(ValueError, match=message):
        model.ours.render(chat)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "must accept the messages"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10**10 }}", "10000000000 characters, more than"),
        ("{{ 10 ** (10 ** 10) }}", "integer of"),
        (
            "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
            "characters",
        ),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 300000 steps"),
        (
            "{% set r = range(9**5) %}{% for i in r recursive %}{% if loop.depth < 5 %}{{ loop(r) }}{% endif %}"
            "{% endfor %}",
            "steps",
        ),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}", "steps"),
        ("{{ messages[0].content }}{% for i in range(99999) %}" + 500 * "a" + "{% endfor %}", "makes a value of"),
        (
            "{% set n = namespace(s='aaaaaaaaaa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "value of",
        ),
        (
            "{% set n = namespace(s=10 ** 999) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
            "integer of",
        ),
        ("{% for a in [1] %}" * 60 + "{% endfor %}" * 60, "nested blocks"),
        ("{{ raise_exception('a' * 9999) }}", r"error: a{300}\."),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% generation %}", "must accept"),
        ("{{ messages[9].content }}", "has no element 9"),
    ],
)
def test_a_template_that_fails_or_does_not_end_is_our_error(template, message, model):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(model.ours, chat_template=template).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.json", b"\xff"),
        ("chat_template.json", b"[]"),
        ("chat_template.json", b'{"chat_template": 5}'),
        ("chat_template.json", b'{"chat_template": [5]}'),
        ("tokenizer_config.json", b"null"),
        ("tokenizer_config.json", b'{"padding_side": "up"}'),
        ("tokenizer_config.json", b'{"padding_side": ["left"]}'),
    ],
)
def test_damaged_files_are_named(name, content, model, tmp_path):
    shutil.copy(model.folder / "tokenizer.json", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Processor.from_pretrained(tmp_path)
