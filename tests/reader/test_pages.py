"""The pages that the reader is trained on: what they say, where, and from which scans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from examples.reader import pages, reading, tower
from examples.reader.model import COUNT, LARGEST, READ, reader_config

CONFIG = reader_config()


def test_scans_that_are_held_out_are_in_no_training_page():
    held_out, others = pages.scans(True), pages.scans(False)
    assert 440 < sum(map(len, held_out)) < 460
    assert sum(map(len, held_out)) + sum(map(len, others)) == 1797
    rows = [{scan.tobytes() for group in split for scan in group} for split in (held_out, others)]
    assert not rows[0] & rows[1]


def test_a_page_is_a_function_of_its_seed():
    first, again, other = (pages.random_page(np.random.default_rng(seed), 400, 300) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.numbers == again.numbers
    assert not np.array_equal(first.pixels, other.pixels)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(300, 1600), st.integers(300, 1600))
def test_a_page_has_its_digits_where_it_says(seed, height, width):
    page = pages.random_page(np.random.default_rng(seed), height, width)
    assert page.pixels.shape == (height, width, 3)
    assert page.pixels.dtype == np.uint8
    assert 1 <= len(page.numbers) <= 3
    assert 1 <= sum(map(len, page.numbers)) <= 6 == pages.FEW.digits
    assert len(page.centres) == sum(map(len, page.numbers))
    ys = [page.centres[sum(map(len, page.numbers[:i])), 1] for i in range(len(page.numbers))]
    assert ys == sorted(ys)  # numbers are in reading order
    dark = page.pixels.mean(axis=-1) < page.pixels.mean() * 0.75
    size = pages.HEIGHT[0] * max(height, width) / pages.UNITS
    for x, y in page.centres * (width, height):
        top, left = max(int(y - size / 2), 0), max(int(x - size / 2), 0)
        assert dark[top : int(y + size / 2) + 1, left : int(x + size / 2) + 1].mean() > 0.03
    assert dark.mean() < 0.05 * len(page.centres)


def test_a_page_too_narrow_for_a_digit_is_refused():
    with pytest.raises(ValueError, match="too narrow"):
        pages.random_page(np.random.default_rng(0), 2000, 40)


@pytest.mark.parametrize("size", [(400, 400), (400, 90), (150, 420), (300, 410)])
def test_every_digit_is_the_label_of_one_cell(size):
    """Its centre is in one half of one cell; cells beside an edge that cuts it may have it once more, as cut."""
    page = pages.random_page(np.random.default_rng(1), size[0], size[1], content=pages.MANY)
    plan = mp.plan_tiles(size[0], size[1], CONFIG.tiling)
    labels = tower.cell_labels(page, plan, CONFIG)
    assert labels.shape == (plan.rows * plan.cols, 16, 3)
    found = labels[..., : tower.CUT]
    assert sorted(found[found != tower.NONE]) == sorted(map(int, "".join(page.numbers)))
    grid = labels.reshape(plan.rows, plan.cols, 4, 4, 3)
    for name, (x, y) in zip("".join(page.numbers), page.centres, strict=True):
        row, v = divmod(y * plan.rows * 4, 4)
        col, u = divmod(x * plan.cols * 4, 4)
        assert grid[int(row), int(col), int(v), int(u), int(u % 1 >= 0.5)] == int(name)


def test_a_digit_on_an_edge_is_asked_for_on_both_sides():
    page = pages.Page(np.zeros((256, 256, 3), np.uint8), ("7",), np.array([[66 / 256, 20 / 256]]))
    labels = tower.cell_labels(page, mp.plan_tiles(256, 256, CONFIG.tiling), CONFIG).reshape(4, 4, 4, 4, 3)
    assert labels[0, 1, 1, 0, tower.LEFT] == 7
    assert labels[0, 0, 1, 3, tower.CUT] == 7
    assert (labels != tower.NONE).sum() == 2


def test_answers_are_those_of_the_page():
    page = pages.Page(np.zeros((9, 9, 3), np.uint8), ("12", "305", "7"), np.zeros((6, 2)))
    assert reading.answers(page) == {READ: "12 305 7", COUNT: "3", LARGEST: "305"}


@pytest.mark.parametrize("shape", sorted(set(reading.SHAPES)))
def test_a_chat_has_a_page_of_the_tiles_asked_for(shape):
    for seed in range(20):
        chat = reading.random_chat(np.random.default_rng(seed), shape[0], shape[1], pages.MANY)
        image = chat[0]["content"][0]["image"]
        plan = mp.plan_tiles(image.shape[0], image.shape[1], CONFIG.tiling)
        assert (plan.rows, plan.cols) == shape
