"""Images and videos inside the messages of a chat: taken from there, in order, and nothing vanishes."""

import base64
import dataclasses
import io
import urllib.parse
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm

import multipatch_jax as mp
from multipatch_jax.text import VideoPlan
from multipatch_jax.text.template_file import VIDEO_TEMPLATE
from tests.helpers.tokenizer import IMAGE


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def uri(pixels):
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


WAYS = {
    '{"type": "image", "image": PIL image}': lambda x, _: {"type": "image", "image": Image.fromarray(x)},
    '{"type": "image", "image": array}': lambda x, _: {"type": "image", "image": x},
    '{"type": "image", "image": bytes of a file}': lambda x, _: {"type": "image", "image": png(x)},
    '{"type": "image", "path": path}': lambda x, path: {"type": "image", "path": str(path)},
    '{"type": "image", "image": path}': lambda x, path: {"type": "image", "image": path},
    '{"type": "image", "url": path}': lambda x, path: {"type": "image", "url": str(path)},
    '{"type": "image", "url": "file:///..."}': lambda x, path: {"type": "image", "url": path.as_uri()},
    '{"type": "image", "url": "data:...;base64,..."}': lambda x, _: {"type": "image", "url": uri(x)},
    '{"type": "image", "base64": "..."}': lambda x, _: {"type": "image", "base64": base64.b64encode(png(x)).decode()},
    '{"type": "image_url", "image_url": {"url": "data:...;base64,..."}}': lambda x, _: {
        "type": "image_url",
        "image_url": {"url": uri(x)},
    },
    '{"type": "image_url", "image_url": path}': lambda x, path: {"type": "image_url", "image_url": str(path)},
}


OTHER_WAYS = {
    "url: data in lines": lambda x, _: {"type": "image", "url": "data:;base64," + base64.encodebytes(png(x)).decode()},
    "url: data, quoted": lambda x, _: {
        "type": "image",
        "url": "data:;base64," + urllib.parse.quote(base64.b64encode(png(x)), safe=""),
    },
    "base64 in lines": lambda x, _: {"type": "image", "base64": base64.encodebytes(png(x)).decode()},
    "base64 as bytes": lambda x, _: {"type": "image", "base64": base64.b64encode(png(x))},
    "base64: a data: URI": lambda x, _: {"type": "image", "base64": uri(x)},
    "with None, as tables have it": lambda x, _: {"type": "image", "image": x, "url": None, "text": None},
}


@pytest.mark.parametrize("way", [*WAYS, *OTHER_WAYS])
def test_an_image_in_a_message_is_taken_from_there(way, model, photos, tmp_path):
    path = tmp_path / "a photo.png"
    path.write_bytes(png(photos["cat"]))
    question = {"type": "text", "text": "What?"}
    chat = [{"role": "user", "content": [(WAYS | OTHER_WAYS)[way](photos["cat"], path), question]}]
    got = model.ours([chat], config=model.config)
    plain = [{"role": "user", "content": [{"type": "image"}, question]}]
    expected = model.ours([plain], [photos["cat"]], config=model.config)
    np.testing.assert_array_equal(got.input_ids, expected.input_ids)
    np.testing.assert_array_equal(got.images[0], photos["cat"])


def test_images_of_messages_and_of_the_call_keep_the_order_of_their_places(model, photos):
    a, b, c, d = (photos["cat"][:, : 100 + 50 * i] for i in range(4))
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image", "image": b}, {"type": "text", "text": "x"}]},
        {"role": "user", "content": [{"type": "text", "text": "y <image>"}, {"type": "image", "image": d}]},
    ]
    for images in ([a, c], [[a, c], []]):
        got = model.ours([chat, "no image"], images, config=model.config)
        for pixels, expected in zip(got.images, (a, b, c, d), strict=True):
            np.testing.assert_array_equal(pixels, expected)
        assert (got.input_ids == IMAGE).sum() == sum(plan.num_tokens for plan in got.plans)
    with pytest.raises(ValueError, match=r"got \[2\] <image> by text, 2 in all, and 1 images"):
        model.ours([chat], [a], config=model.config)


def test_the_template_for_videos_writes_what_the_references_does(model):
    """Its source differs since transformers 5.24, whose template takes a string as content too."""
    say = {"type": "text", "text": "What?"}
    for first in ([{"type": "image"}, {"type": "video"}, say], [{"type": "video"}, say], [say, {"type": "video"}]):
        chat = [{"role": "user", "content": first}, {"role": "assistant", "content": [say]}]
        ours, theirs = (
            model.tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            for template in (VIDEO_TEMPLATE, processing_smolvlm.DEFAULT_CHAT_TEMPLATE)
        )
        assert ours == theirs


def test_a_video_stands_among_images_in_order(model, photos):
    """The frames' tokens are those of `encode_frames`, in their places between the images' tokens."""
    frames, cat, rocket = [photos["cat"], photos["coffee"]], photos["cat"], photos["rocket"]
    plan = VideoPlan((0, 30), fps=10.0, duration=4.5)
    content = [
        {"type": "image", "image": rocket},
        {"type": "video", "video": frames, "plan": plan},
        {"type": "text", "text": "What happens?"},
        {"type": "image"},
    ]
    chat = [{"role": "user", "content": content}]
    inputs = model.ours([chat], [cat], config=model.config)
    assert inputs.order == ["image", "video", "image"]
    text = model.ours.decode(inputs.input_ids[0])
    assert "You are provided the following series of two frames from a 0:00:04 [H:MM:SS] video." in text
    assert "Frame from 00:00:" in text
    assert "Frame from 00:03:" in text
    tokens = [
        mp.encode_images(model.params, [rocket], config=model.config)[0],
        mp.text.encode_frames(model.params, frames, config=model.config),
        mp.encode_images(model.params, [cat], config=model.config)[0],
    ]
    embeddings = mp.text.embed_tokens(model.params, inputs.input_ids)
    expected = mp.text.pack(inputs.input_ids, embeddings, tokens, image_token_id=IMAGE)
    found = mp.prepare_inputs(model.params, [chat], [cat], config=model.config, processor=model.ours)
    np.testing.assert_array_equal(found["inputs_embeds"], expected)


@pytest.mark.parametrize("fps", [None, 2])
def test_frames_without_a_plan_have_their_own_rate(fps, model, photos):
    part = {"type": "video", "video": np.stack([photos["cat"]] * 5)} | ({} if fps is None else {"fps": fps})
    chat = [{"role": "user", "content": [part]}]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = model.ours.decode(model.ours([chat], config=model.config).input_ids[0])
    assert bool(caught) == (fps is None)
    assert f"frames from a 0:00:0{2 if fps else 0} [H:MM:SS] video." in text
    assert text.count("Frame from 00:01:") == (2 if fps else 0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image", "url": "https://example.com/a.png"},
            "is a link, 'https://example.com/a.png', and nothing is",
        ),
        ({"type": "image_url", "image_url": {"url": "HTTP://x/" + 99 * "y"}}, r"is a link, 'HTTP://x/y+\.\.\.'"),
        ({"type": "image_url", "image_url": 5}, "image_url. of part 0 of message 0 must be .* got int"),
        ({"type": "image_url"}, "got NoneType"),
        ({"type": "image", "url": "data:image/png;base64"}, "with its data after a comma"),
        ({"type": "image", "url": "data:image/png;base64,%%%"}, "base64 data of part 0 of message 0 cannot be decoded"),
        ({"type": "image", "base64": np.zeros(3)}, "base64. of part 0 of message 0 must be a text, got ndarray"),
        (
            {"type": "image", "url": 5000 * "a"},
            r"path or a URI, got a text of 5000 characters, 'a+\.\.\.': pass base64 as",
        ),
        ({"type": "image", "imgae": np.zeros(3)}, r"may have image, url, path, base64, got \['imgae'\] in part 0"),
        ({"type": "video", "video": iter([])}, "must be its frames, a list .* got list_iterator"),
        (
            {"type": "video", "video": [1], "fps": 1, "plan": VideoPlan((0,), 1, 1)},
            'must have a "plan" or "fps", got both',
        ),
        ({"type": "video", "video": [1], "plan": {"fps": "2"}}, "must have fps and frames_indices of numbers"),
        ({"type": "video", "path": "a.mp4"}, r"may have video, plan, fps, got \['path'\] in part 0"),
        ({"type": "image", "image": "a.png", "path": "b.png"}, "must name one image, got image and path"),
        ({"type": "video"}, "must be its frames, .* got NoneType"),
        ({"type": "video", "video": "a.mp4"}, "must be its frames, .* got 'a.mp4'"),
        ({"type": "video", "video": []}, "must be its frames"),
        ({"type": "video", "video": [np.zeros((9, 9, 3), np.uint8)], "fps": 0}, "fps. of part 0 .* finite number"),
        (
            {"type": "video", "video": [np.zeros((9, 9, 3), np.uint8)], "plan": VideoPlan((), 1, 1)},
            "VideoPlan of its 1 fr",
        ),
    ],
)
def test_parts_that_are_not_understood_are_refused(part, message, model, compilations):
    with pytest.raises(ValueError, match=message):
        mp.prepare_inputs(
            model.params, [[{"role": "user", "content": [part]}]], config=model.config, processor=model.ours
        )
    assert not compilations()


def test_an_image_that_cannot_be_read_is_named_and_its_data_are_not_written(model, photos):
    parts = [{"type": "image", "image": photos["cat"]}, {"type": "image", "url": uri(photos["cat"])[:2022]}]
    with pytest.raises(mp.ImageError) as caught:
        model.ours([[{"role": "user", "content": parts}]], config=model.config)
    assert caught.value.__notes__ == ["This was image 1."]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'][1]['text'] }}{% endfor %}", "drops the image part of message 0"),
        (
            "{% for m in messages %}<image><image>{{ m['content'][1]['text'] }}{% endfor %}",
            "no image and no video but those of the chat, and it adds one",
        ),
        ("<image>", "drops the text part of message 0"),
    ],
)
def test_a_part_that_the_template_drops_is_an_error(template, message, model):
    ours = dataclasses.replace(model.ours, chat_template=template)
    with pytest.raises(ValueError, match=message):
        ours.render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}])
