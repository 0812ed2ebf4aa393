"""Prompts, counts, packing and video: the reference's strings, ids and places; bad input told before device work."""

import ast
import dataclasses
import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import num2words
from transformers.models.idefics3.modeling_idefics3 import Idefics3Model
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_utils import VideoMetadata

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.text import (
    VideoPlan,
    embed_tokens,
    encode_frames,
    expand_prompt,
    expand_video_prompt,
    expanded_length,
    labels_for,
    pack,
    sample_frames,
    video,
)
from tests.conftest import TINY
from tests.tokenizer import make_tokenizer

CONFIG = dataclasses.replace(TINY, image_token_id=49190)
IMAGE = 49190
SINGLE_TOKEN = [name for name, config in mp.PRESETS.items() if config.image_token_id == IMAGE]
GRIDS = [(rows, cols) for rows in range(1, 7) for cols in range(1, 7)]


cached_tokenizer = functools.cache(make_tokenizer)


@pytest.fixture
def tokenizer():
    return cached_tokenizer()


def reference_processor(tokenizer, config, **tiling):
    config = dataclasses.replace(config, tiling=dataclasses.replace(config.tiling, **tiling))
    image_processor = reference.image_processor(config)
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=config.tiling.tokens_per_tile), config


def a_plan(rows, cols, config=CONFIG, global_tile=True):
    tiles = rows * cols + global_tile if rows else 1
    return mp.image.TilePlan(9, 9, (9, 9), (9, 9), rows, cols, tiles, tiles * config.tiling.tokens_per_tile)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts.


@pytest.mark.parametrize("config", [CONFIG, mp.presets.SMOLVLM_256M, mp.presets.SMOLVLM_2_2B, mp.presets.IDEFICS3_8B])
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
    processor, config = reference_processor(tokenizer, CONFIG, do_resize=False)
    image = np.zeros((grid[0] * 64, grid[1] * 64, 3), np.uint8)
    plan = mp.plan_tiles(*image.shape[:2], config.tiling)
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
    processor, config = reference_processor(tokenizer, CONFIG, do_image_splitting=split)
    words = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=9)
    text = data.draw(words) + "".join("<image>" + data.draw(words) for _ in sizes)
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    plans = [mp.plan_tiles(*size, config.tiling) for size in sizes]
    expected = processor(text=[text], images=[images])["input_ids"][0]
    assert tokenizer(expand_prompt(text, plans, config))["input_ids"] == expected


def test_without_the_global_tile_a_split_image_is_its_rows():
    config = dataclasses.replace(CONFIG, tiling=dataclasses.replace(CONFIG.tiling, global_tile=False))
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
        expand_prompt(text, [a_plan(2, 2)] * count, CONFIG)


def test_a_plan_of_another_config_is_refused():
    plan = mp.plan_tiles(100, 200, mp.presets.SMOLVLM_256M.tiling)
    with pytest.raises(ValueError, match="4 tokens a tile, this one has 576 in 9 tiles"):
        expand_prompt("<image>", [plan], CONFIG)
    with pytest.raises(ValueError, match="64 tokens a tile, this one has 1053 in 13 tiles"):
        mp.text.expanded_length(mp.plan_tiles(480, 640, mp.presets.SMOLVLM_2_2B.tiling), mp.presets.SMOLVLM_256M)


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
        expanded_length(a_plan(1, 7), CONFIG)


# ---------------------------------------------------------------------------------------------------------------------
# Packing.


def make_batch(places, length=40, width=8, side="left", seed=0, dtype=np.float32):
    """Ids with `places[b]` image tokens in sample b, among text of random length; embeddings; as many tokens."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(places), length), 2, np.int32)
    mask = np.zeros_like(ids)
    for sample, count in enumerate(places):
        row = rng.integers(3, 200, int(rng.integers(max(count, 1), length + 1)))
        row[rng.permutation(len(row))[:count]] = IMAGE
        where = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[sample, where], mask[sample, where] = row, 1
    text = rng.normal(size=(len(places), length, width)).astype(dtype)
    return ids, mask, text, rng.normal(size=(sum(places), width)).astype(np.float32)


def reference_pack(ids, text, tokens, image_token_id=IMAGE):
    config = types.SimpleNamespace(image_token_id=image_token_id)
    arrays = torch.from_numpy(ids), torch.from_numpy(text), torch.from_numpy(tokens)
    return Idefics3Model.inputs_merger(types.SimpleNamespace(config=config), *arrays).numpy()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(range(3)), max_size=12).map(lambda image: [image.count(sample) for sample in range(3)]),
    st.sampled_from(["left", "right"]),
    st.integers(0, 99),
)
def test_packing_equals_the_references_masked_scatter(places, side, seed):
    ids, _, text, tokens = make_batch(places, side=side, seed=seed)
    got = np.asarray(pack(ids, text, tokens, image_token_id=IMAGE))
    np.testing.assert_array_equal(got, reference_pack(ids, text, tokens))
    capacity = np.concatenate([tokens, np.full((40 - len(tokens), 8), 7, np.float32)])
    padded = pack(ids, text, capacity, image_token_id=IMAGE, num_tokens=len(tokens))
    np.testing.assert_array_equal(np.asarray(padded), got)
    images = [tokens[sum(places[:i]) : sum(places[: i + 1])] for i in range(3)]
    listed = pack(ids, text, images, image_token_id=IMAGE)
    np.testing.assert_array_equal(np.asarray(listed), got)
    traced = jax.jit(functools.partial(pack, image_token_id=IMAGE))(ids, text, tokens)
    np.testing.assert_array_equal(np.asarray(traced), got)


def test_tokens_are_cast_to_the_embeddings_dtype_and_text_is_untouched():
    ids, _, text, tokens = make_batch([3, 0, 5], dtype=np.float16)
    got = pack(ids, text, tokens, image_token_id=IMAGE)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(np.asarray(got), reference_pack(ids, text, tokens))
    text = jnp.asarray(text, jnp.bfloat16)
    got = pack(ids, text, tokens, image_token_id=IMAGE)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got)[ids != IMAGE], np.asarray(text)[ids != IMAGE])
    np.testing.assert_array_equal(np.asarray(got)[ids == IMAGE], tokens.astype(jnp.bfloat16))


def test_tiles_of_one_image_need_no_reshape():
    ids, _, text, tokens = make_batch([12])
    got = pack(ids, text, tokens.reshape(3, 4, 8), image_token_id=IMAGE)
    np.testing.assert_array_equal(np.asarray(got), reference_pack(ids, text, tokens))


def test_gradients_reach_every_token_and_every_text_position():
    ids, _, text, tokens = make_batch([3, 0, 5])
    weights = np.random.default_rng(1).normal(size=text.shape).astype(np.float32)

    def loss(text, tokens):
        return (pack(ids, text, tokens, image_token_id=IMAGE) * weights).sum()

    for function in (loss, jax.jit(loss)):
        to_text, to_tokens = jax.grad(function, (0, 1))(text, tokens)
        np.testing.assert_array_equal(to_text, np.where(ids[..., None] == IMAGE, 0, weights))
        np.testing.assert_array_equal(to_tokens, weights[ids == IMAGE])
    images = [tokens[:3], tokens[3:]]
    to_images = jax.grad(lambda images: loss(text, images))(images)
    np.testing.assert_array_equal(np.concatenate(to_images), weights[ids == IMAGE])


def test_one_program_whatever_the_number_and_place_of_images(compilations):
    capacity = np.zeros((64, 24), np.float32)

    def ask(places, **options):
        ids, _, text, tokens = make_batch(places, length=37, width=24, **options)
        capacity[: len(tokens)] = tokens
        got = pack(ids, text, capacity, image_token_id=IMAGE, num_tokens=len(tokens))
        np.testing.assert_array_equal(np.asarray(got), reference_pack(ids, text, tokens))

    ask([3, 0, 5])
    assert len(compilations()) == 1
    for places, side in (([0, 0, 0], "left"), ([30, 30, 4], "right"), ([1, 2, 3], "left")):
        ask(places, side=side, seed=sum(places))
    ids, _, text, tokens = make_batch([1, 2, 3], length=37, width=24)
    total = (ids == IMAGE).sum()
    capacity[: len(tokens)] = tokens
    for num_tokens in (total, np.asarray(total, np.int32), jax.device_put(np.int32(total))):
        pack(ids, text, capacity, image_token_id=IMAGE, num_tokens=num_tokens)
    assert not compilations()


@pytest.mark.parametrize(
    ("places", "sizes", "message"),
    [
        ([4, 8, 4], [4, 4, 4, 3], r"3 tokens for the 4 places of sample 2 .*by sample: \[4, 8, 4\], tokens in all: 15"),
        ([4, 8, 4], [4, 4, 4], "0 tokens for the 4 places of sample 2 "),
        ([4, 8, 4], [8, 4, 4], "8 tokens for the 4 places of sample 0 "),
        ([4, 8, 4], [4, 4, 6, 2], "10 tokens for the 8 places of sample 1 "),
        ([4, 8, 4], [4, 4, 4, 4, 2], "2 tokens more than the places of all 3 samples"),
        ([4, 8], [], "0 tokens for the 4 places of sample 0 "),
        ([0, 0], [4], "4 tokens more than the places of all 2 samples"),
    ],
)
def test_tokens_that_do_not_fill_their_places_are_refused(places, sizes, message, compilations):
    ids, _, text, _ = make_batch(places, length=9)
    images = [np.zeros((size, 8), np.float32) for size in sizes]
    with pytest.raises(ValueError, match=message):
        pack(ids, text, images, image_token_id=IMAGE)
    if sum(sizes) != sum(places):  # of one array, only the total can be wrong
        with pytest.raises(ValueError, match=r"fill the places of each sample exactly"):
            pack(ids, text, np.zeros((sum(sizes), 8), np.float32), image_token_id=IMAGE)
        padded = np.zeros((99, 8), np.float32)
        with pytest.raises(ValueError, match=r"fill the places of each sample exactly"):
            pack(ids, text, padded, image_token_id=IMAGE, num_tokens=sum(sizes))
    on_device = jax.device_put([image.reshape(1, -1, 8) for image in images])  # as encode_tiles gives them
    with pytest.raises(ValueError, match=message):
        pack(ids, text, on_device, image_token_id=IMAGE)
    assert not compilations()


def test_inside_jit_no_image_of_a_list_lies_in_two_samples():
    ids, _, text, tokens = make_batch([2, 4], length=9)
    traced = jax.jit(lambda ids, text, images: pack(ids, text, images, image_token_id=IMAGE))
    for sizes in ([2, 4], [1, 1, 4], [2, 1, 3]):
        images = np.split(tokens, np.cumsum(sizes)[:-1])
        np.testing.assert_array_equal(np.asarray(traced(ids, text, images)), reference_pack(ids, text, tokens))
    for sizes in ([4, 2], [1, 5], [3, 3]):
        images = np.split(tokens, np.cumsum(sizes)[:-1])
        assert np.isnan(traced(ids, text, images)).all()


def test_packing_refuses_arrays_that_do_not_fit():
    ids, _, text, tokens = make_batch([4])
    for arguments, message in (
        ((ids[0], text, tokens), r"input_ids must be an integer array of shape \(B, S\), got int32 of shape \(40,\)"),
        ((ids.tolist(), text, tokens), "input_ids must be an integer array .* got list"),
        ((ids, text[:, :-1], tokens), r"\(B, S\) = \(1, 40\) as input_ids, got float32 of shape \(1, 39, 8\)"),
        ((ids, text, tokens[:, :-1]), r"D = 8 as text_embeddings, .* got float32 of shape \(4, 7\)"),
        ((ids, text, tokens.astype(int)), "visual_tokens must be floating"),
        ((ids, text, [tokens, None]), "visual_tokens must be floating .* got NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(*arguments, image_token_id=IMAGE)
    with pytest.raises(ValueError, match="num_tokens must be 0 to the 4 rows of visual_tokens, got 5"):
        pack(ids, text, tokens, image_token_id=IMAGE, num_tokens=5)
    with pytest.raises(ValueError, match="num_tokens goes with one padded array"):
        pack(ids, text, [tokens], image_token_id=IMAGE, num_tokens=4)
    for wrong in (3.5, np.ones(2, int), "4"):
        with pytest.raises(ValueError, match="num_tokens must be an integer or None, got"):
            pack(ids, text, tokens, image_token_id=IMAGE, num_tokens=wrong)


def test_inside_jit_a_wrong_count_gives_nan_everywhere():
    ids, _, text, tokens = make_batch([4, 3])

    @jax.jit
    def traced(ids, text, tokens, num_tokens=None):
        return pack(ids, text, tokens, image_token_id=IMAGE, num_tokens=num_tokens)

    assert np.isfinite(traced(ids, text, tokens)).all()
    padded = np.concatenate([tokens, tokens])
    assert np.isfinite(traced(ids, text, padded, 7)).all()
    no_images = np.full_like(ids, 5)
    for wrong in (
        (ids, text, tokens[:-1]),
        (ids, text, tokens[:0]),
        (ids, text, padded),
        (ids, text, padded, 6),
        (ids, text, padded, 8),
        (no_images, text, tokens),
    ):
        assert np.isnan(traced(*wrong)).all()
    assert np.isfinite(traced(no_images, text, tokens[:0])).all()


def test_labels_leave_out_images_and_padding():
    ids, mask, _, _ = make_batch([4, 0, 7])
    got = np.asarray(labels_for(ids, image_token_id=IMAGE, attention_mask=mask))
    np.testing.assert_array_equal(got, np.where((ids == IMAGE) | (mask == 0), -100, ids))
    got = np.asarray(jax.jit(functools.partial(labels_for, image_token_id=IMAGE, ignore_index=-1))(ids))
    np.testing.assert_array_equal(got, np.where(ids == IMAGE, -1, ids))
    with pytest.raises(ValueError, match="attention_mask must have the shape of input_ids"):
        labels_for(ids, image_token_id=IMAGE, attention_mask=mask[:, 1:])


def test_embeddings_are_rows_of_the_table_and_unknown_ids_are_refused():
    table = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    params = {"text_model": {"embed_tokens": {"embedding": table}}}
    ids = np.array([[0, 19, 7], [3, 3, 1]])
    np.testing.assert_array_equal(embed_tokens(params, ids), table[ids])
    for wrong in (20, -1, -100):
        bad = ids.copy()
        bad[1, 2] = wrong
        with pytest.raises(ValueError, match=f"0 to 19, got {wrong} in sample 1 at place 2"):
            embed_tokens(params, bad)
        traced = np.asarray(jax.jit(embed_tokens)(params, bad))
        np.testing.assert_array_equal(np.isnan(traced).all(-1), bad == wrong)
    with pytest.raises(ValueError, match=r'load them with parts=\("vision", "connector", "embeddings"\)'):
        embed_tokens({"vision_model": {}}, ids)


# ---------------------------------------------------------------------------------------------------------------------
# Video.


@functools.cache
def reference_sample_frames():
    """The reference's own code, taken from its source: its module cannot be imported without torchvision."""
    path = Path(transformers.__file__).parent / "models/smolvlm/video_processing_smolvlm.py"
    cls = next(
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "SmolVLMVideoProcessor"
    )
    function = next(node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "sample_frames")
    names = {"np": np, "VideoMetadata": VideoMetadata}
    exec(compile(ast.Module([function], []), str(path), "exec"), names)
    return names["sample_frames"]


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.integers(1, 99), st.integers(1, 100_000)),
    st.one_of(st.sampled_from([24, 25, 30, 29.97, 24000 / 1001]), st.floats(0.3, 120)),
    st.one_of(st.sampled_from([1, 2, 0.5]), st.floats(0.1, 30)),
    st.one_of(st.just(64), st.integers(1, 300)),
    st.sampled_from([0, 0.5, 1, 2]),
)
def test_the_frames_are_those_that_the_reference_samples(num_frames, fps, target_fps, max_frames, skip):
    metadata = VideoMetadata(total_num_frames=num_frames, fps=fps, duration=num_frames / fps)
    expected = reference_sample_frames()(None, metadata, num_frames=max_frames, fps=target_fps, skip_secs=skip)
    got = sample_frames(num_frames, fps, target_fps=target_fps, max_frames=max_frames, skip_seconds=skip)
    assert list(got.indices) == expected.tolist()
    assert got.duration == metadata.duration


def test_numbers_are_spelled_as_num2words_does():
    for number in range(10_000):
        assert video._in_words(number) == num2words(number)


@pytest.mark.parametrize(("num_frames", "fps", "max_frames"), [(1, 30, 64), (2300, 29.97, 64), (400_000, 25, 7)])
def test_the_video_prompt_is_the_references(num_frames, fps, max_frames, monkeypatch):
    monkeypatch.setattr(processing_smolvlm, "num2words", num2words)
    plan = sample_frames(num_frames, fps, max_frames=max_frames)
    metadata = VideoMetadata(num_frames, fps, duration=num_frames / fps, frames_indices=list(plan.indices))
    inputs = {"pixel_values": np.zeros((1, len(plan.indices))), "video_metadata": [metadata]}
    names = types.SimpleNamespace(
        image_seq_len=4,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )
    expected = processing_smolvlm.SmolVLMProcessor.replace_video_token(names, inputs, 0)
    assert expand_video_prompt("See <video>!", [plan], CONFIG) == f"See {expected}!"
    assert expand_video_prompt("<video><video>", [plan, plan], CONFIG) == expected * 2


@pytest.mark.parametrize(("video_size", "resized"), [(256, (170, 256)), (512, (340, 512)), (None, (42, 64))])
def test_frames_are_squashed_into_one_tile_each_as_the_reference_does(video_size, resized, tiny, photo):
    """Its two resizes, by torch's kernels, which torchvision's LANCZOS calls on a CPU."""
    frames = np.stack([photo, photo[::-1], photo[:, ::-1]])  # (F, 300, 451, 3)
    x = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
    for size in (resized, (64, 64)):
        x = torch.nn.functional.interpolate(x, size=size, mode="lanczos", antialias=True)
    tiles = x.permute(0, 2, 3, 1).contiguous().numpy()
    expected = np.asarray(mp.encode_tiles(tiny.params, tiles, config=tiny.config))
    got = encode_frames(tiny.params, frames, config=tiny.config, video_size=video_size)
    np.testing.assert_array_equal(np.asarray(got), expected)
    policies = dataclasses.replace(tiny.config.tiling, upscale=False, max_tiles=2, resampler="pillow12")
    config = dataclasses.replace(tiny.config, tiling=policies)  # for images; a video has but one way
    got = encode_frames(tiny.params, list(frames), config=config, video_size=video_size)
    np.testing.assert_array_equal(np.asarray(got), expected)


def test_a_videos_tokens_fill_its_prompt(tiny, tokenizer):
    plan = sample_frames(90, 30)
    frames = np.zeros((len(plan.indices), 30, 40, 3), np.uint8)
    tokens = encode_frames(tiny.params, frames, config=tiny.config)
    assert tokens.shape == (3, 4, 48)
    ids = np.array([tokenizer(expand_video_prompt("<video> What?", [plan], CONFIG))["input_ids"]])
    got = pack(ids, np.zeros((*ids.shape, 48), np.float32), tokens, image_token_id=IMAGE)
    np.testing.assert_array_equal(np.asarray(got)[ids == IMAGE], np.asarray(tokens).reshape(-1, 48))


def test_a_video_of_another_length_compiles_nothing(tiny, compilations):
    frames = np.zeros((6, 30, 40, 3), np.uint8)
    encode_frames(tiny.params, frames, config=tiny.config)
    compilations()
    for count in (1, 2, 5):
        assert len(encode_frames(tiny.params, frames[:count], config=tiny.config)) == count
    assert not compilations()


def test_bad_videos_are_refused(tiny):
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        sample_frames(0, 30)
    with pytest.raises(ValueError, match=r"must be positive .* got 0, 1, 64 and 1"):
        sample_frames(10, 0)
    with pytest.raises(ValueError, match="at least one frame, got none"):
        encode_frames(tiny.params, [], config=tiny.config)
    with pytest.raises(ValueError, match="at least one frame, got none"):
        expand_video_prompt("<video>", [VideoPlan((), 30, 1.0)], CONFIG)
    with pytest.raises(mp.ImageError, match=r"^Image 1: .* at least one pixel"):
        encode_frames(tiny.params, [np.zeros((3, 3, 3), np.uint8), np.zeros((0, 3, 3), np.uint8)], config=tiny.config)
    with pytest.raises(ValueError, match="longest_edge must be"):
        encode_frames(tiny.params, [np.zeros((3, 3, 3), np.uint8)], config=tiny.config, video_size=0)
    with pytest.raises(ValueError, match="got 1 <video> and 0 videos"):
        expand_video_prompt("<video>", [], CONFIG)
