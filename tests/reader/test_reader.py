"""The small model that comes with the package: it answers, alike everywhere, and it says where it is missing."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data

import multipatch_jax as mp
from examples.reader import evaluate, pages, reading
from examples.reader.model import COUNT, LARGEST, READ
from multipatch_jax.checkpoint import local_folder
from tests.helpers.tolerances import CLOSE

READER = "multipatch/reader"
SIZES = [(900, 700), (300, 1600), (1600, 500), (640, 480)]  # 17, 5, 9 and 17 tiles
KERNELS = {
    "float32": {},
    "plain": {"compute": mp.Compute(attention="plain")},
    "blocked": {"compute": mp.Compute(attention="blocked")},
    "flax": {"compute": mp.Compute(encoder="flax")},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def fixed_pages():
    """Pages of held-out scans that are read exactly; a mark of the weights, as other pages are not."""
    return [
        pages.draw_page(np.random.default_rng(seed), *size, numbers, held_out=True)
        for seed, (size, numbers) in enumerate(zip(SIZES, [("27", "4", "813"), ("905",), ("6", "31"), ("4482",)]))
    ]


def chats(questions):
    return [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one}]}] for one in questions]


def make_generator(dtype="float32", **options):
    return mp.Generator.from_pretrained(READER, dtype=dtype, max_length=512, batch_size=4, **options)


@pytest.fixture(scope="module")
def generator():
    return make_generator()


@pytest.mark.parametrize("kernel", KERNELS)
def test_fixed_pages_are_read_exactly(kernel, fixed_pages):
    images = [[page.pixels] for page in fixed_pages]
    answers = make_generator(**KERNELS[kernel]).generate(chats([READ] * len(images)), images)
    assert [answer.text.strip() for answer in answers] == [" ".join(page.numbers) for page in fixed_pages]


def test_held_out_scans_are_read(generator):
    """A floor well under what `python -m examples.reader.evaluate` measures on more pages."""
    few = evaluate.held_out_pages(48, pages.FEW, seed=11)
    assert evaluate.exact(generator, few) >= 0.8
    assert evaluate.exact(generator, few, COUNT) >= 0.8
    assert evaluate.exact(generator, few, LARGEST) >= 0.7


def test_the_global_tile_alone_is_not_enough(generator):
    config = evaluate.global_only(generator.config)
    _, params = mp.from_pretrained(READER, parts="all", dtype="float32")
    blind = mp.Generator(params, config=config, processor=generator.processor, max_length=512, batch_size=4)
    assert evaluate.exact(blind, evaluate.held_out_pages(24, pages.FEW, seed=11)) <= 0.2
