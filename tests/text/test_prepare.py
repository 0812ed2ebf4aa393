"""Texts and images into a language model: the reference's embeddings, logits and greedy tokens."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import multipatch_jax as mp
from multipatch_jax.text import embed_tokens, pack, prepare_inputs
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.models import TINY
from tests.helpers.project import run_examples
from tests.helpers.text import UNEVEN, their_inputs
from tests.helpers.tokenizer import IMAGE

CASES = {
    "one image": ("Describe <image> please.", ["cat"]),
    "two images": ("First: <image> and\n\nthen<image>. Which is larger?", ["rocket", "coffee"]),
    "no image": ("The capital of France is", []),
}


def their_embeddings(reference_model, inputs):
    """The input embeddings that the reference's language model gets."""
    seen = {}
    decoder = reference_model.model.text_model
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        pixels = inputs["pixel_values"].to(reference_model.dtype) if "pixel_values" in inputs else None
        reference_model(**{**inputs, "pixel_values": pixels})
    hook.remove()
    return seen["inputs_embeds"].double().numpy()


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
    floor = distance(reference32, truth)
    assert distance(mine, truth) <= min(tolerances.FLOAT32_RATIO * floor, tolerances.FLOAT32_CEILING)
    np.testing.assert_array_equal(got["attention_mask"], theirs["attention_mask"])
    for positions, mask in zip(got["position_ids"], got["attention_mask"], strict=True):
        np.testing.assert_array_equal(positions[mask == 1], np.arange(int(mask.sum())))


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
def test_the_references_decoder_gives_the_same_logits_and_tokens_from_our_embeddings(case, model, photos):
    text, names = CASES[case]
    images = [photos[name] for name in names]
    theirs = their_inputs(model, [text], [images])
    ours = prepare_inputs(model.params, [text], images, config=model.config, processor=model.ours)
    with torch.no_grad():
        expected = model.reference(**theirs).logits[0]
        logits = model.reference(**as_torch(ours)).logits[0]
    assert expected.shape == (theirs["input_ids"].shape[1], 49280)
    assert (logits - expected).abs().max() <= tolerances.LOGITS * expected.abs().max()
    assert torch.linalg.norm(logits - expected) <= tolerances.LOGITS * torch.linalg.norm(expected)

    whole = generate(model, theirs)
    for step in whole.logits:
        top = step[0].topk(2).values
        assert top[0] - top[1] > 10 * tolerances.LOGITS * step.abs().max(), "a coin toss: choose another seed"
    packed = generate(model, as_torch(ours, "inputs_embeds", "attention_mask"))
    start = theirs["input_ids"].shape[1]
    tokens = whole.sequences[0, start:].tolist()
    assert len(tokens) == 20
    assert packed.sequences[0].tolist() == tokens


def test_a_batch_gives_the_logits_of_its_samples_alone(model, photos):
    texts, names = UNEVEN
    images = [[photos[name] for name in sample] for sample in names]
    options = {"config": model.config, "processor": dataclasses.replace(model.ours, padding_side="right")}
    batch = as_torch(prepare_inputs(model.params, texts, images, **options))
    with torch.no_grad():
        together = model.reference(**batch).logits[:, -1]
        for sample, (text, own) in enumerate(zip(texts, images, strict=True)):
            alone = as_torch(prepare_inputs(model.params, [text], own, **options))
            expected = model.reference(**alone).logits[0, -1]
            assert (together[sample] - expected).abs().max() <= tolerances.LOGITS * expected.abs().max()


def test_one_encoding_serves_many_questions(model, photos):
    tokens = mp.encode_images(model.params, [photos["cat"]], config=model.config)
    for text in ("<image> What is it?", "Is it a cat? <image>"):
        inputs = model.ours([text], [photos["cat"]], config=model.config)
        embeddings = embed_tokens(model.params, inputs.input_ids)
        packed = pack(inputs.input_ids, embeddings, tokens, image_token_id=model.config.image_token_id)
        expected = prepare_inputs(model.params, [text], [photos["cat"]], config=model.config, processor=model.ours)
        np.testing.assert_array_equal(np.asarray(packed), np.asarray(expected["inputs_embeds"]))


def test_the_embeddings_may_be_traced(model):
    """Gradients reach the table through `embed_tokens` and `pack`, as soft prompts need."""
    inputs = model.ours(["ab", "b"], config=model.config)

    def loss(params):
        embeddings = embed_tokens(params, inputs.input_ids)
        return pack(inputs.input_ids, embeddings, [], image_token_id=IMAGE).sum()

    table = jax.grad(loss)({"text_model": model.params["text_model"]})["text_model"]["embed_tokens"]["embedding"]
    counts = np.bincount(inputs.input_ids.ravel(), minlength=49280)
    np.testing.assert_array_equal(np.asarray(table)[:, 0], counts)


def test_the_readmes_caption_is_the_references(model, photos, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(photos["cat"]).save(photo)
    changes = {"HuggingFaceTB/SmolVLM-256M-Instruct": model.folder, "photo.jpg": photo}
    run_examples("README.md", {}, changes, heading="From a photograph to an answer")
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
        (["<video> What?"], [], "pass a chat with .* or use expand_video_prompt"),
        ([], [], r"pass \[text\]"),
        ([{"role": "user", "content": []}], [], r"pass \[text\]"),
    ],
)
def test_images_that_do_not_fit_the_texts_are_refused(texts, images, message, model, photos, compilations):
    images = [[photos[x] for x in one] if isinstance(one, list) else photos[one] for one in images]
    with pytest.raises(ValueError, match=message):
        prepare_inputs(model.params, texts, images, config=model.config, processor=model.ours)
    assert not compilations()


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
