"""A batch of chats: ids, labels and tiles of one shape, and what is refused before any work."""

import dataclasses

import numpy as np
import pytest

import multipatch_jax as mp
from tests.helpers.language import language_loss
from tests.helpers.text import TextModel, make_text_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TextModel:
    pytest.importorskip("transformers", reason="the model is written by the reference")
    return make_text_model(tmp_path_factory.mktemp("model"))


def chat(question, answer, images=0):
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


CHATS = [chat("What?", "A cat.", 1), chat("No picture.", "Right."), chat("Both?", "Two.", 2)]


def batch_of(model, chats, images=(), **options):
    return mp.train.chat_batch(chats, images, config=model.config, processor=model.ours, **options)


def pictures(photo):
    return [photo[:, :200], photo[:60, :60], photo[:100]]


def test_rows_have_their_own_tiles_in_order_and_blank_ones_behind(model, photo):
    images = pictures(photo)
    batch = batch_of(model, CHATS, images, num_tiles=40)
    tiles = [mp.tile_image_host(image, model.config.tiling) for image in images]
    expected = [tiles[0], tiles[0][:0], np.concatenate(tiles[1:])]
    for row, wanted in zip(batch["tiles"], expected, strict=True):
        np.testing.assert_array_equal(row[: len(wanted)], wanted)
        assert not row[len(wanted) :].any()
    most = batch_of(model, CHATS, images)["tiles"]
    assert most.shape[1] == max(map(len, expected))
    np.testing.assert_array_equal(most, batch["tiles"][:, : most.shape[1]])


def test_labels_are_the_answers_and_rows_are_padded_to_one_length(model, photo):
    batch = batch_of(model, CHATS, pictures(photo), length=300, num_tiles=40)
    assert {name: batch[name].shape for name in ("input_ids", "attention_mask", "labels")} == {
        "input_ids": (3, 300),
        "attention_mask": (3, 300),
        "labels": (3, 300),
    }
    said = [model.tokenizer.decode(ids[ids != -100]) for ids in batch["labels"]]
    assert said == [f" {one[1]['content']}<end_of_utterance>" for one in CHATS]
    labelled = batch["labels"] != -100
    np.testing.assert_array_equal(batch["labels"][labelled], batch["input_ids"][labelled])
    short = batch_of(model, CHATS, pictures(photo))
    size = short["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask", "labels"):
        np.testing.assert_array_equal(batch[name][:, :size], short[name])
    assert not batch["attention_mask"][:, size:].any()


def test_frames_of_a_video_are_a_tile_each(model, photo):
    video = {"type": "video", "video": [photo[:, :200], photo[:, 100:300]], "fps": 1}
    mixed = [{"role": "user", "content": [video, {"type": "image"}]}, {"role": "assistant", "content": "Yes."}]
    batch = batch_of(model, [mixed], [photo])
    tiling = mp.text.frame_config(model.config).tiling
    frames = [mp.tile_image_host(frame, tiling) for frame in video["video"]]
    expected = np.concatenate([*frames, mp.tile_image_host(photo, model.config.tiling)])
    np.testing.assert_array_equal(batch["tiles"][0], expected)


def test_the_loss_takes_a_batch_of_texts_alone(model):
    _, params = mp.from_pretrained(model.folder, parts="all")
    batch = batch_of(model, [CHATS[1]])
    assert batch["tiles"].shape == (1, 0, 64, 64, 3)
    total, count = language_loss(model.config)(params, batch)
    assert count == len("Right.") + 2  # bytes, the space before them, and the end
    assert np.isfinite(total)


@pytest.mark.parametrize(
    ("chats", "options", "message"),
    [
        ([CHATS[1], CHATS[1][:1]], {}, "Each chat must have an answer to learn, and chat 1 has none"),
        (["a text"], {}, "Each chat must have an answer to learn, and chat 0 has none"),
        ([CHATS[1]] * 2, {"length": 20}, r"must have at most length=20 tokens, got \d+ in chat 0: raise it"),
        ([CHATS[0]], {"num_tiles": 3}, r"must be at most num_tiles=3 tiles, got \d+ in chat 0"),
        ([CHATS[0]], {"length": 30}, r"must have at most length=30 tokens, got \d+ in chat 0"),
        ([CHATS[1]], {"length": 0}, "length must be an integer from 1 to 1048576, got 0"),
        ([CHATS[1]], {"num_tiles": -1}, "num_tiles must be an integer from 0 to 1024, got -1"),
        ([CHATS[1]], {"processor": None}, "processor must be a Processor"),
    ],
)
def test_what_teaches_nothing_or_does_not_fit_is_refused(chats, options, message, model, photo):
    images = [photo] * (chats[0] is CHATS[0])
    with pytest.raises(ValueError, match=message):
        mp.train.chat_batch(chats, images, **{"config": model.config, "processor": model.ours} | options)


def test_rows_that_need_padding_need_a_pad_token(model):
    without = dataclasses.replace(model.ours, pad_token_id=None)
    with pytest.raises(ValueError, match="Rows of length=100 need padding, and this checkpoint has no pad token"):
        mp.train.chat_batch([CHATS[1]], config=model.config, processor=without, length=100)
