"""The small model that comes with the package: it answers, alike everywhere, and it says where it is missing."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

import multipatch_jax as mp
from examples.reader import evaluate, pages
from examples.reader.model import COUNT, LARGEST, READ
from multipatch_jax.checkpoint import find_folder, local_folder, shipped

READER = "multipatch/reader"
# Pages of held-out scans that are read exactly, of 17, 5, 9 and 13 tiles.
FIXED = [((900, 700), ("27", "4", "813")), ((300, 1600), ("905",)), ((1600, 500), ("6", "31")), ((640, 480), ("4482",))]
KERNELS = {
    "plain": {"compute": mp.Compute(attention="plain")},
    "blocked": {"compute": mp.Compute(attention="blocked")},
    "flax": {"compute": mp.Compute(encoder="flax")},
    "bfloat16": {"dtype": "bfloat16"},
}


def fixed_pages():
    return [
        pages.draw_page(np.random.default_rng(seed), size[0], size[1], numbers, held_out=True)
        for seed, (size, numbers) in enumerate(FIXED)
    ]


def chat(question):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def make_generator(dtype="float32", **options):
    return mp.Generator.from_pretrained(READER, dtype=dtype, max_length=512, batch_size=4, **options)


@pytest.fixture(scope="module")
def generator():
    return make_generator()


def test_it_is_small_and_whole():
    folder = find_folder(READER)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 6e6
    config, params = mp.from_pretrained(READER, parts="all")
    assert 1e6 <= sum(x.size for x in mp.params.flatten(params).values()) <= 4e6
    assert {str(x.dtype) for x in mp.params.flatten(params).values()} == {"bfloat16"}
    assert config.tiling.longest_edge == 4 * config.tiling.tile_size  # the family's ratio


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
def test_fixed_pages_are_read_exactly(kernel, generator):
    images = [[page.pixels] for page in fixed_pages()]
    chosen = generator if kernel == "auto" else make_generator(**KERNELS[kernel])
    answers = chosen.generate([chat(READ)] * len(images), images)
    assert [answer.text.strip() for answer in answers] == [" ".join(numbers) for _, numbers in FIXED]
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_held_out_scans_are_read(generator):
    """Floors under what `python -m examples.reader.evaluate` measures on more pages."""
    few = evaluate.random_pages(48, pages.FEW, seed=11)
    assert evaluate.exact(generator, few) >= 0.8
    assert evaluate.exact(generator, few, COUNT) >= 0.8
    assert evaluate.exact(generator, few, LARGEST) >= 0.7


def test_the_global_tile_alone_is_not_enough(generator):
    _, params = mp.from_pretrained(READER, parts="all", dtype="float32")
    config, processor = evaluate.global_only(generator.config), generator.processor
    blind = mp.Generator(params, config=config, processor=processor, max_length=512, batch_size=4)
    assert evaluate.exact(blind, evaluate.random_pages(24, pages.FEW, seed=11)) <= 0.2


def test_the_page_of_the_demo_is_read(generator):
    with Image.open(find_folder(READER) / "page.png") as file:
        numbers, page = file.info["numbers"], mp.load_image(file)
    (answer,) = generator.generate([chat(READ)], [page])
    assert answer.text.strip() == numbers
    assert len(numbers.split()) == 3


@pytest.mark.parametrize("question", [READ, "What is this?", "Wo bin ich? \u2603", ""])
def test_what_it_was_not_made_for_gets_some_answer(question, generator):
    for image in (data.chelsea(), np.zeros((3, 5, 3), np.uint8), np.full((4000, 300, 3), 255, np.uint8)):
        (answer,) = generator.generate([chat(question)], [image], max_new_tokens=16)
        assert answer.num_prompt_tokens > 16
        assert len(answer.ids) <= 16


def test_the_exported_tower_leads_to_the_same_answers(generator, tmp_path):
    """The tokens of the exported CPU program, in the prompt's places: each token of the answer is the likeliest."""
    config, params = mp.from_pretrained(READER, parts="all", dtype="float32")
    images = [page.pixels for page in fixed_pages()]
    answers = generator.generate([chat(READ)] * len(images), [[image] for image in images])
    mp.export_encoder(tmp_path / "tower", config, params, platforms="cpu")
    encode = mp.load_exported(tmp_path / "tower", "cpu")
    for image, answer in zip(images, answers, strict=True):
        tokens = encode(mp.tile_image_host(image, config.tiling))
        ids = generator.processor([chat(READ)], [image], config=config).input_ids
        whole = np.concatenate([ids, np.array([answer.ids], ids.dtype)], axis=1)
        packed = mp.text.pack(whole, mp.text.embed_tokens(params, whole), tokens, image_token_id=config.image_token_id)
        likeliest = np.asarray(mp.text_logits(params, packed, config=config).argmax(axis=-1))[0]
        assert likeliest[ids.shape[1] - 1 : -1].tolist() == list(answer.ids)


def test_transformers_answers_the_same(generator, tmp_path):
    torch = pytest.importorskip("torch", reason="compares with the reference")
    transformers = pytest.importorskip("transformers", reason="compares with the reference")
    config, params = mp.from_pretrained(READER, parts="all", dtype="float32")
    mp.export_hf(tmp_path / "hf", config, params, base=find_folder(READER))
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    images = [page.pixels for page in fixed_pages()]
    ours = generator.generate([chat(READ)] * len(images), [[image] for image in images])
    for image, answer in zip(images, ours, strict=True):
        text = processor.apply_chat_template(chat(READ), add_generation_prompt=True)
        inputs = processor(text=text, images=[Image.fromarray(image)], return_tensors="pt")
        with torch.no_grad():
            ids = theirs.generate(**inputs, do_sample=False, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
        assert ids.tolist() == list(answer.ids)


def test_a_folder_of_the_users_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped_folder = local_folder(READER)
    assert shipped_folder is not None
    assert not shipped_folder.is_relative_to(tmp_path)
    (tmp_path / READER).mkdir(parents=True)
    assert str(local_folder(READER)) == READER


def test_a_package_without_the_model_says_so(monkeypatch):
    monkeypatch.setitem(shipped.NAMES, READER, "not-there")
    for load in (mp.from_pretrained, mp.Processor.from_pretrained, mp.Generator.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"comes with the package, and its folder .* is missing: install"):
            load(READER)
