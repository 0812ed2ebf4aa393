"""Videos: the frames, the prompt and the tiles of the reference."""

import ast
import dataclasses
import functools
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import num2words
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_utils import VideoMetadata

import multipatch_jax as mp
from multipatch_jax.text import VideoPlan, encode_frames, expand_video_prompt, pack, sample_frames, video
from tests.helpers.models import TINY_SMOLVLM
from tests.helpers.tokenizer import IMAGE


@functools.cache
def reference_sample_frames():
    """The reference's function, cut from its source: importing its module needs torchvision."""
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
    names: Any = types.SimpleNamespace(  # what the method reads of its processor
        image_seq_len=4,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )
    expected = processing_smolvlm.SmolVLMProcessor.replace_video_token(names, inputs, 0)
    assert expand_video_prompt("See <video>!", [plan], TINY_SMOLVLM) == f"See {expected}!"
    assert expand_video_prompt("<video><video>", [plan, plan], TINY_SMOLVLM) == expected * 2


@pytest.mark.parametrize(("video_size", "resized"), [(256, (170, 256)), (512, (340, 512)), (None, (42, 64))])
def test_frames_are_squashed_into_one_tile_each_as_the_reference_does(video_size, resized, tiny, photo):
    """The reference resizes twice with torchvision's LANCZOS, which is torch's own kernel on a CPU."""
    frames = np.stack([photo, photo[::-1], photo[:, ::-1]])  # (3 frames, H, W, 3)
    x = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
    for size in (resized, (64, 64)):
        x = torch.nn.functional.interpolate(x, size=size, mode="lanczos", antialias=True)
    tiles = x.permute(0, 2, 3, 1).contiguous().numpy()
    expected = np.asarray(mp.encode_tiles(tiny.params, tiles, config=tiny.config))
    got = encode_frames(tiny.params, frames, config=tiny.config, video_size=video_size)
    np.testing.assert_array_equal(np.asarray(got), expected)
    policies = dataclasses.replace(tiny.config.tiling, upscale=False, max_tiles=2, resampler="pillow12")
    config = dataclasses.replace(tiny.config, tiling=policies)  # for images only, not for videos
    got = encode_frames(tiny.params, list(frames), config=config, video_size=video_size)
    np.testing.assert_array_equal(np.asarray(got), expected)


def test_a_videos_tokens_fill_its_prompt(tiny, tokenizer):
    plan = sample_frames(90, 30)
    frames = np.zeros((len(plan.indices), 30, 40, 3), np.uint8)
    tokens = encode_frames(tiny.params, frames, config=tiny.config)
    assert tokens.shape == (3, 4, 48)
    ids = np.array([tokenizer(expand_video_prompt("<video> What?", [plan], TINY_SMOLVLM))["input_ids"]])
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
    with pytest.raises(ValueError, match="num_frames must be a positive number of frames, got 0"):
        sample_frames(0, 30)
    with pytest.raises(ValueError, match=r"fps must be a finite number above 0, got 0"):
        sample_frames(10, 0)
    with pytest.raises(ValueError, match="at least one frame, got none"):
        encode_frames(tiny.params, [], config=tiny.config)
    with pytest.raises(ValueError, match="at least one frame, got none"):
        expand_video_prompt("<video>", [VideoPlan((), 30, 1.0)], TINY_SMOLVLM)
    with pytest.raises(mp.ImageError, match=r"^Image 1: .* at least one pixel"):
        encode_frames(tiny.params, [np.zeros((3, 3, 3), np.uint8), np.zeros((0, 3, 3), np.uint8)], config=tiny.config)
    with pytest.raises(ValueError, match="video_size must be a positive number of pixels, got 0"):
        encode_frames(tiny.params, [np.zeros((3, 3, 3), np.uint8)], config=tiny.config, video_size=0)
    with pytest.raises(ValueError, match="got 1 <video> and 0 videos"):
        expand_video_prompt("<video>", [], TINY_SMOLVLM)
