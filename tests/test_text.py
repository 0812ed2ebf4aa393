"""Texts and images into a language model: the reference's ids, embeddings, logits and greedy tokens."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.text import Processor, embed_tokens, pack, prepare_inputs
from tests import tolerances
from tests.conftest import TINY, make_model
from tests.test_project import README
from tests.tokenizer import CHAT_TEMPLATE, make_tokenizer

IMAGE = 49190
CONFIG = dataclasses.replace(TINY, image_token_id=IMAGE, text=dataclasses.replace(TINY.text, vocab_size=49280))
PARTS = ("vision", "connector", "embeddings")
SEED = 0
LOGITS = 1e-4  # of the largest logit: two float32 towers and decoders, one after the other


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A reference model with a folder as the hub has it: weights, configs, tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("model")
    model = make_model(CONFIG, folder, SEED)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    config, params = mp.from_pretrained(folder, parts=PARTS)
    processor = Idefics3Processor(reference.image_processor(CONFIG), tokenizer, image_seq_len=4)
    return types.SimpleNamespace(
        config=config,
        params=params,
        reference=model.reference,
        folder=folder,
        tokenizer=tokenizer,
        theirs=processor,
        ours=Processor.from_pretrained(folder),
    )


@pytest.fixture(scope="module")
def photos(photo):
    return {"cat": photo, "rocket": data.rocket()[:, :200], "coffee": data.coffee()}


CASES = {
    "one image": ("Describe <image> please.", ["cat"]),
    "two images": ("First: <image> and\n\nthen<image>. Which is larger?", ["rocket", "coffee"]),
    "no image": ("The capital of France is", []),
}
UNEVEN = (["No picture here.", "<image>", "A <image> and a <image>, what?"], [[], ["cat"], ["rocket", "coffee"]])


def their_inputs(model, texts, images, side="left"):
    model.tokenizer.padding_side = side
    nested = images if any(images) else None
    return model.theirs(text=texts, images=nested, padding=True, return_tensors="pt")


def their_embeddings(reference_model, inputs):
    """What the reference's language model is given."""
    seen = {}
    decoder = reference_model.model.text_model
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        pixels = inputs["pixel_values"].to(reference_model.dtype) if "pixel_values" in inputs else None
        reference_model(**{**inputs, "pixel_values": pixels})
    hook.remove()
    return seen["inputs_embeds"].double().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Ids.


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_uneven_samples_has_the_references_ids_and_mask(side, model, photos):
    texts, names = UNEVEN
    images = [[photos[name] for name in sample] for sample in names]
    expected = their_inputs(model, texts, images, side)
    flat = [image for sample in images for image in sample]
    for given in (images, flat):
        got = model.ours(texts, given, config=model.config, padding_side=side)
        np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
        np.testing.assert_array_equal(got.attention_mask, expected["attention_mask"])
        assert [plan.num_tiles for plan in got.plans] == [
            mp.plan_tiles(*x.shape[:2], CONFIG.tiling).num_tiles for x in flat
        ]
        assert all(np.array_equal(mine, given) for mine, given in zip(got.images, flat, strict=True))


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
    """A tokenizer that adds <|im_start|> itself, as Llama 3's adds its own; the template of SmolVLM begins with it."""
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
    assert processor([chat], config=CONFIG).input_ids[0, :2].tolist() != [1, 1]
    assert processor(["Hi"], config=CONFIG).input_ids[0, 0] == 1


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


def test_truncation_keeps_whole_images(model, photos):
    text, images = "Describe <image> please.", [photos["cat"]]
    whole = model.ours([text], images, config=model.config).input_ids
    end = int(np.flatnonzero(whole[0] == IMAGE)[-1]) + 1
    got = model.ours([text], images, config=model.config, max_length=end).input_ids
    np.testing.assert_array_equal(got, whole[:, :end])
    long = model.ours(["short", "a much longer text"], config=model.config, max_length=6)
    assert long.input_ids.shape == (2, 6)
    with pytest.raises(
        ValueError, match=rf"sample 1 has {whole.shape[1]} tokens and its last image ends at {end}, got "
    ):
        model.ours(["x", text], images, config=model.config, max_length=end - 1)
    with pytest.raises(ValueError, match="max_length must be a positive"):
        model.ours([text], images, config=model.config, max_length=0)


def test_decode_is_the_references(model):
    ids = model.tokenizer("Où <image>est\n\n-elle ?<end_of_utterance>")["input_ids"]
    assert (
        model.ours.decode(np.array(ids)) == model.tokenizer.decode(ids, skip_special_tokens=True) == "Où est\n\n-elle ?"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings, logits, tokens.


@pytest.mark.parametrize("side", ["left", "right"])
def test_inputs_embeds_are_the_references(side, model, photos):
    texts, names = UNEVEN
    images = [[photos[name] for name in sample] for sample in names]
    theirs = their_inputs(model, texts, images, side)
    float32 = their_embeddings(model.reference, theirs)
    float64 = their_embeddings(copy.deepcopy(model.reference).double(), theirs)
    got = prepare_inputs(model.params, texts, images, config=model.config, processor=model.ours, padding_side=side)
    embeds, ids = np.asarray(got["inputs_embeds"], np.float64), theirs["input_ids"].numpy()
    np.testing.assert_array_equal(embeds[ids != IMAGE], float32[ids != IMAGE])
    mine, reference32, truth = (x[ids == IMAGE] for x in (embeds, float32, float64))
    distance = np.linalg.norm(mine - truth) / np.linalg.norm(truth)
    floor = np.linalg.norm(reference32 - truth) / np.linalg.norm(truth)
    assert distance <= min(tolerances.FLOAT32_RATIO * floor, tolerances.FLOAT32_CEILING)
    np.testing.assert_array_equal(got["attention_mask"], theirs["attention_mask"])
    for positions, mask in zip(got["position_ids"], got["attention_mask"], strict=True):
        np.testing.assert_array_equal(positions[mask == 1], np.arange(mask.sum()))


def generate(model, inputs):
    with torch.no_grad():
        return model.reference.generate(
            **inputs,
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
            return_dict_in_generate=True,
            output_logits=True,
        )


def as_torch(inputs, *names):
    return {name: torch.from_numpy(np.array(inputs[name])) for name in names or inputs}


@pytest.mark.parametrize("case", CASES)
def test_the_references_decoder_says_the_same_of_our_embeddings_as_the_reference_whole(case, model, photos):
    text, names = CASES[case]
    images = [photos[name] for name in names]
    theirs = their_inputs(model, [text], [images])
    ours = prepare_inputs(model.params, [text], images, config=model.config, processor=model.ours)
    with torch.no_grad():
        expected = model.reference(**theirs).logits[0]
        logits = model.reference(**as_torch(ours)).logits[0]
    assert expected.shape == (theirs["input_ids"].shape[1], 49280)
    assert (logits - expected).abs().max() <= LOGITS * expected.abs().max()
    assert torch.linalg.norm(logits - expected) <= LOGITS * torch.linalg.norm(expected)

    whole = generate(model, theirs)
    for step in whole.logits:
        top = step[0].topk(2).values
        assert top[0] - top[1] > 10 * LOGITS * step.abs().max(), "a coin toss: choose another seed"
    packed = generate(model, as_torch(ours, "inputs_embeds", "attention_mask"))
    start = theirs["input_ids"].shape[1]
    tokens = whole.sequences[0, start:].tolist()
    assert len(tokens) == 20
    assert packed.sequences[0].tolist() == tokens


def test_a_batch_gives_the_logits_of_its_samples_alone(model, photos):
    texts, names = UNEVEN
    images = [[photos[name] for name in sample] for sample in names]
    options = {"config": model.config, "processor": model.ours, "padding_side": "left"}
    batch = as_torch(prepare_inputs(model.params, texts, images, **options))
    with torch.no_grad():
        together = model.reference(**batch).logits[:, -1]
        for sample, (text, own) in enumerate(zip(texts, images, strict=True)):
            alone = as_torch(prepare_inputs(model.params, [text], own, **options))
            expected = model.reference(**alone).logits[0, -1]
            assert (together[sample] - expected).abs().max() <= LOGITS * expected.abs().max()


def test_one_encoding_serves_many_questions(model, photos):
    tokens = mp.encode_images(model.params, [photos["cat"]], config=model.config)
    for text in ("<image> What is it?", "Is it a cat? <image>"):
        inputs = model.ours([text], [photos["cat"]], config=model.config)
        embeddings = embed_tokens(model.params, inputs.input_ids)
        packed = pack(inputs.input_ids, embeddings, tokens, image_token_id=model.config.image_token_id)
        expected = prepare_inputs(model.params, [text], [photos["cat"]], config=model.config, processor=model.ours)
        np.testing.assert_array_equal(np.asarray(packed), np.asarray(expected["inputs_embeds"]))


def test_the_readmes_caption_is_the_references(model, photos, tmp_path, capsys):
    code = re.search(r"## Into the language model\n.*?```python\n(.+?)```", README, re.S)
    assert code, "README.md has no example under this heading"
    Image.fromarray(photos["cat"]).save(tmp_path / "photo.png")
    text = code.group(1).replace("HuggingFaceTB/SmolVLM-256M-Instruct", str(model.folder))
    exec(compile(text.replace("photo.jpg", str(tmp_path / "photo.png")), "README.md", "exec"), {})
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe this image."}]}]
    prompt = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    theirs = their_inputs(model, [prompt], [[photos["cat"]]])
    with torch.no_grad():
        ids = model.reference.generate(**theirs, max_new_tokens=50, do_sample=False)[0]
    answer = model.tokenizer.decode(ids[theirs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer
    assert capsys.readouterr().out == answer + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (["<image>"], [], r"got \[1\] <image> by text, 1 in all, and 0 images"),
        (["a", "<image>"], ["cat", "cat"], r"got \[0, 1\] <image> by text, 1 in all, and 2 images"),
        (["a", "<image>"], [["cat"], []], r"got \[0, 1\] <image> in 2 texts and images by text \[1, 0\]"),
        (["a", "<image>"], [[], "cat"], "pass a list of images for every text"),
        ("<image>", ["cat"], r"pass \[text\]"),
        (["<video> What?"], [], "expand that with expand_video_prompt"),
        ([], [], r"pass \[text\]"),
        ([{"role": "user", "content": []}], [], r"pass \[text\]"),
    ],
)
def test_images_that_do_not_fit_the_texts_are_refused(texts, images, message, model, photos, compilations):
    images = [[photos[x] for x in one] if isinstance(one, list) else photos[one] for one in images]
    with pytest.raises(ValueError, match=message):
        prepare_inputs(model.params, texts, images, config=model.config, processor=model.ours)
    assert not compilations()


def test_one_image_is_no_list_of_images(model, photos):
    for image in ("photo.jpg", Path("photo.jpg"), b"bytes", photos["cat"], Image.new("RGB", (3, 3))):
        with pytest.raises(ValueError, match=r"pass \[image\]"):
            model.ours(["<image>"], image, config=model.config)


def test_params_that_do_not_fit_are_told_before_device_work(model, photos, compilations):
    def ask(params, **options):
        prepare_inputs(params, ["<image>"], [photos["cat"]], config=model.config, processor=model.ours, **options)

    with pytest.raises(ValueError, match=r" - connector/modality_projection/proj/kernel"):
        ask({key: value for key, value in model.params.items() if key != "connector"})
    narrow = {"embed_tokens": {"embedding": np.zeros((49280, 40), np.float32)}}
    with pytest.raises(ValueError, match="as wide as the visual tokens, 48, got 40"):
        ask({**model.params, "text_model": narrow})
    with pytest.raises(ValueError, match="batch_size must be"):
        ask(model.params, batch_size=0)
    with pytest.raises(ValueError, match=r" - connector/modality_projection/proj/kernel"):
        mp.encode_images({"vision_model": model.params["vision_model"]}, [], config=model.config)
    assert not compilations()


def test_what_does_not_belong_together_is_refused(model, photos):
    with pytest.raises(ValueError, match="image_token_id 190, got 49190: load both from one checkpoint"):
        model.ours(["a"], config=TINY)
    without = {key: value for key, value in model.params.items() if key != "text_model"}
    with pytest.raises(ValueError, match="have no token embeddings"):
        prepare_inputs(without, ["a"], config=model.config, processor=model.ours)
    small = {**model.params, "text_model": {"embed_tokens": {"embedding": np.zeros((100, 48), np.float32)}}}
    with pytest.raises(ValueError, match=r"0 to 99, got \d+ in sample 0"):
        prepare_inputs(small, ["<end_of_utterance>"], config=model.config, processor=model.ours)
    with pytest.raises(ValueError, match="padding_side must be"):
        model.ours(["a"], config=model.config, padding_side="middle")
    unpadded = dataclasses.replace(model.ours, pad_token_id=None)
    assert unpadded(["a", "b"], config=model.config).input_ids.shape == (2, 1)
    with pytest.raises(ValueError, match="no pad token"):
        unpadded(["a", "ab"], config=model.config)
    with pytest.raises(mp.ImageError, match="at least one pixel") as caught:
        model.ours(["<image><image>"], [photos["cat"], np.zeros((0, 3, 3), np.uint8)], config=model.config)
    assert caught.value.__notes__ == ["This was image 1."]


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


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        Processor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Processor.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="the hub did not give its tokenizer"):
        Processor.from_pretrained("nobody/nothing-here")


def test_the_extras_libraries_are_imported_at_first_use_and_named_when_missing(model, monkeypatch):
    code = "import sys, multipatch_jax.text; print({'tokenizers', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for name in ("tokenizers", "jinja2.sandbox"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=r"install multipatch_jax\[text\]"):
                Processor.from_pretrained(model.folder)


def test_the_embeddings_may_be_traced(model):
    """Soft prompts and the like: gradients to the table through `prepare_inputs`' own functions."""
    inputs = model.ours(["ab", "b"], config=model.config)

    def loss(params):
        embeddings = embed_tokens(params, inputs.input_ids)
        return pack(inputs.input_ids, embeddings, [], image_token_id=IMAGE).sum()

    table = jax.grad(loss)({"text_model": model.params["text_model"]})["text_model"]["embed_tokens"]["embedding"]
    counts = np.bincount(inputs.input_ids.ravel(), minlength=49280)
    np.testing.assert_array_equal(np.asarray(table)[:, 0], counts)
