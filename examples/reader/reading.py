"""The later stages' task: read a page, count its numbers, find the largest. Each page is a chat of three questions."""

import dataclasses
from typing import Any

import jax
import numpy as np

import multipatch_jax as mp
from examples.reader.model import COUNT, LARGEST, READ
from examples.reader.pages import DENSE, FEW, MANY, Content, Page, random_page

# Tiles of a page, one shape a step. Pages of 300 to 1600 pixels a side are 4 x 4 for a third, and hardly ever 1 x 4.
SHAPES = [(4, 4), (3, 4), (4, 3), (2, 4), (4, 2), (4, 4), (3, 4), (4, 3), (1, 4), (4, 1)]


def answers(page: Page) -> dict[str, str]:
    """Return the right answer to each question."""
    return {READ: " ".join(page.numbers), COUNT: str(len(page.numbers)), LARGEST: max(page.numbers, key=int)}


def chat(page: Page, questions: list[str]) -> mp.text.Chat:
    """Return a chat about a page, with the questions in this order."""
    said = answers(page)
    messages: Any = []
    for index, question in enumerate(questions):
        image = [] if index else [{"type": "image", "image": page.pixels}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": said[question]}]})
    return messages


def random_chat(rng: np.random.Generator, rows: int, cols: int, content: Content) -> mp.text.Chat:
    """Return a chat about a page whose tiles are `rows` x `cols`.

    A dense page is only to be read; of others reading is the first question two times in three.
    """
    long = int(rng.integers(256, 420))
    # Between two numbers of tiles, a little above the lower one; a page of one row or column still has room for a line.
    height, width = (
        long if side == 4 else int(long * rng.uniform(max((side - 1) / 4 + 0.02, 0.12), side / 4))
        for side in (rows, cols)
    )
    page = random_page(rng, height, width, content=content)
    if content is DENSE:
        return chat(page, [READ])
    others = [str(question) for question in rng.permutation([COUNT, LARGEST])]
    first = [READ, *others] if rng.random() < 2 / 3 else [others[0], READ, others[1]]
    return chat(page, first)


def make_batch(
    rng: np.random.Generator, rows: int, cols: int, number: int, content: Content, config: Any, processor: Any
) -> dict[str, np.ndarray]:
    """Return the arrays of `number` chats about pages of one shape, padded to a length that depends on it alone."""
    chats = [random_chat(rng, rows, cols, content) for _ in range(number)]
    tiles = rows * cols + 1
    length = tiles * (config.tiling.tokens_per_tile + 2) + 2 * rows + (96 if content is DENSE else 72)
    return mp.train.chat_batch(chats, config=config, processor=processor, length=length, num_tiles=tiles)


def small_batch(step: int, *, seed: int, config: mp.ModelConfig, processor: mp.Processor) -> dict[str, np.ndarray]:
    """Return a batch of pages of 5 or 9 tiles."""
    rng = np.random.default_rng((seed, step, 2))
    rows, cols = [(1, 4), (4, 1), (2, 4), (4, 2), (2, 4), (4, 2)][step % 6]
    return make_batch(rng, rows, cols, 24, _some(rng, 0.6, 0.2), config, processor)


def global_batch(step: int, *, seed: int, config: mp.ModelConfig, processor: mp.Processor) -> dict[str, np.ndarray]:
    """Return a batch of pages of any shape, of which only the global tile is shown."""
    rng = np.random.default_rng((seed, step, 4))
    config = dataclasses.replace(config, tiling=dataclasses.replace(config.tiling, do_image_splitting=False))
    sides = [np.asarray(rng.choice(SHAPES)) for _ in range(64)]
    chats = [random_chat(rng, int(rows), int(cols), FEW) for rows, cols in sides]
    return mp.train.chat_batch(chats, config=config, processor=processor, length=104, num_tiles=1)


def batch(step: int, *, seed: int, config: mp.ModelConfig, processor: mp.Processor) -> dict[str, np.ndarray]:
    """Return a batch of pages of any shape: 5, 9, 13 or 17 tiles."""
    rng = np.random.default_rng((seed, step, 3))
    rows, cols = SHAPES[step % len(SHAPES)]
    return make_batch(rng, rows, cols, 16, _some(rng, 0.4, 0.3), config, processor)


def _some(rng: np.random.Generator, dense: float, many: float) -> Content:
    """Return what the pages of a batch hold: dense ones and those of many digits with these shares, or few digits."""
    drawn = rng.random()
    return DENSE if drawn < dense else MANY if drawn < dense + many else FEW


def loss(params: Any, batch: Any, rng: Any, encode: Any, *, config: Any) -> tuple[jax.Array, jax.Array]:
    """The language model's loss, of the answers alone."""
    return mp.train.language_model_loss(params, batch, rng, encode, config=config)
