"""Prompts and their lengths: the reference's strings and ids for every grid of tiles."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.smolvlm import processing_smolvlm

import multipatch_jax as mp
from multipatch_jax.text import expand_prompt, expanded_length
from tests.helpers.images import plan_of
from tests.helpers.models import TINY_SMOLVLM
from tests.helpers.text import a_plan, reference_processor
from tests.helpers.tokenizer import IMAGE, cached_tokenizer

SINGLE_TOKEN = [name for name, config in mp.PRESETS.items() if config.image_token_id == IMAGE]
GRIDS = [(rows, cols) for rows in range(1, 7) for cols in range(1, 7)]


@pytest.mark.parametrize(
    "config", [TINY_SMOLVLM, mp.presets.SMOLVLM_256M, mp.presets.SMOLVLM_2_2B, mp.presets.IDEFICS3_8B]
)
def test_the_markers_are_the_references_for_every_grid(config, tokenizer):
    processor, _ = reference_processor(tokenizer, config)
    tokens = config.tiling.tokens_per_tile
    names = ("<fake_token_around_image>", "<image>", "<global-img>")
    for rows, cols in [(0, 0), *GRIDS, (9, 12)]:
        got = expand_prompt("<image>", [a_plan(rows, cols, config)], config)
        assert got == processor.replace_image_token({"rows": [[rows]], "cols": [[cols]]}, 0)
        assert got == processing_smolvlm.get_image_prompt_string(rows, cols, tokens, *names)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_ids_are_the_references_for_every_grid(grid, tokenizer):
    processor, config = reference_processor(tokenizer, TINY_SMOLVLM, do_resize=False)
    image = np.zeros((grid[0] * 64, grid[1] * 64, 3), np.uint8)
    plan = plan_of(image, config.tiling)
    assert (plan.rows, plan.cols) == (grid if grid != (1, 1) else (0, 0))
    text = "Look:\n\n<image> What is it?"
    expected = processor(text=[text], images=[[image]])["input_ids"][0]
    assert tokenizer(expand_prompt(text, [plan], config))["input_ids"] == expected
    assert expected.count(IMAGE) == plan.num_tokens


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(5, 300), st.integers(5, 300)), min_size=1, max_size=4),
    st.data(),
    st.booleans(),
)
def test_several_images_among_text_give_the_references_ids(sizes, data, split):
    tokenizer = cached_tokenizer()
    processor, config = reference_processor(tokenizer, TINY_SMOLVLM, do_image_splitting=split)
    words = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=9)
    text = data.draw(words) + "".join("<image>" + data.draw(words) for _ in sizes)
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    plans = [plan_of(image, config.tiling) for image in images]
    expected = processor(text=[text], images=[images])["input_ids"][0]
    assert tokenizer(expand_prompt(text, plans, config))["input_ids"] == expected


def test_without_the_global_tile_a_split_image_is_its_rows():
    config = dataclasses.replace(TINY_SMOLVLM, tiling=dataclasses.replace(TINY_SMOLVLM.tiling, global_tile=False))
    plan = mp.plan_tiles(100, 200, config.tiling)
    tile = "<fake_token_around_image><row_{}_col_{}>" + "<image>" * 4
    rows = ["".join(tile.format(row, col) for col in range(1, 5)) + "\n" for row in (1, 2)]
    assert expand_prompt("a<image>b", [plan], config) == f"a{rows[0]}{rows[1]}b"
    one = mp.plan_tiles(64, 64, dataclasses.replace(config.tiling, longest_edge=64))
    whole = "<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>"
    assert expand_prompt("a<image>b", [one], config) == f"a{whole}b"


@pytest.mark.parametrize(("text", "count"), [("<image>", 0), ("<image>", 2), ("none", 1), ("<image> <image>", 1)])
def test_images_and_places_that_differ_in_number_are_refused(text, count):
    with pytest.raises(ValueError, match=rf"got {text.count('<image>')} <image> and {count} images"):
        expand_prompt(text, [a_plan(2, 2)] * count, TINY_SMOLVLM)


def test_a_plan_of_another_config_is_refused():
    plan = mp.plan_tiles(100, 200, mp.presets.SMOLVLM_256M.tiling)
    with pytest.raises(ValueError, match="4 tokens a tile, this one has 576 in 9 tiles"):
        expand_prompt("<image>", [plan], TINY_SMOLVLM)
    with pytest.raises(ValueError, match="64 tokens a tile, this one has 1053 in 13 tiles"):
        expanded_length(mp.plan_tiles(480, 640, mp.presets.SMOLVLM_2_2B.tiling), mp.presets.SMOLVLM_256M)


@pytest.mark.parametrize("name", SINGLE_TOKEN)
def test_expanded_length_is_the_true_count(name, tokenizer):
    rng = np.random.default_rng(0)
    counts, checked = {}, 0
    tilings = [
        mp.PRESETS[name].tiling,
        dataclasses.replace(mp.PRESETS[name].tiling, upscale=False),
        dataclasses.replace(mp.PRESETS[name].tiling, longest_edge=6 * mp.PRESETS[name].tiling.tile_size),
        dataclasses.replace(mp.PRESETS[name].tiling, global_tile=False),
        dataclasses.replace(mp.PRESETS[name].tiling, do_image_splitting=False),
    ]
    for tiling in tilings:
        config = dataclasses.replace(mp.PRESETS[name], tiling=tiling)
        for height, width in np.exp(rng.uniform(0, np.log(5000), (1000, 2))).astype(int).tolist():
            plan = mp.plan_tiles(height, width, tiling)
            key = plan.rows, plan.cols, plan.num_tiles
            if key not in counts:
                counts[key] = len(tokenizer(expand_prompt("<image>", [plan], config))["input_ids"])
            assert expanded_length(plan, config) == counts[key], (height, width, tiling)
            checked += 1
    assert checked == 5000
    assert len(counts) > 10


def test_expanded_length_says_where_the_tokenizer_is_needed():
    assert len(SINGLE_TOKEN) == 8
    for name in mp.PRESETS.keys() - SINGLE_TOKEN:
        plan = mp.plan_tiles(480, 640, mp.PRESETS[name].tiling)
        with pytest.raises(ValueError, match="the tokenizer"):
            expanded_length(plan, mp.PRESETS[name])
    with pytest.raises(ValueError, match="1 x 7 tiles"):
        expanded_length(a_plan(1, 7), TINY_SMOLVLM)
