"""`Generator.explain`: the numbers are those of the public steps, and lie where the answer looked."""

import dataclasses

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.generate import token_saliency
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.images import plan_of
from tests.helpers.tokenizer import IMAGE

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]}]


@pytest.fixture(scope="module")
def generator(talker):
    return mp.Generator(talker.params, config=talker.config, processor=talker.processor, max_length=512, eos_ids=())


@pytest.fixture(scope="module")
def photos(photo):
    return [photo[:90, :200], photo[::3, ::3]]


@pytest.fixture(scope="module")
def answer(generator, photos):
    return generator.generate([CHAT], photos, max_new_tokens=6)[0]


@pytest.mark.parametrize("token", [None, 0, 5])
def test_the_numbers_are_those_of_the_steps(token, generator, talker, photos, answer):
    """Tokenise, encode, pack, and take the gradient, without padding and with the layers as they are in a file."""
    inputs = talker.processor([CHAT], photos, config=talker.config)
    prompt = inputs.input_ids.shape[1]
    ids = np.concatenate([inputs.input_ids, [answer.ids]], axis=1).astype(np.int32)
    tokens = mp.encode_images(talker.params, photos, config=talker.config)
    embeds = mp.text.pack(ids, mp.text.embed_tokens(talker.params, ids), tokens, image_token_id=IMAGE)
    places = prompt + np.arange(6)[None] if token is None else np.array([[prompt + token]])
    expected = np.asarray(token_saliency(talker.params, embeds, ids, places, config=talker.config))[ids == IMAGE]
    found = generator.explain(CHAT, photos, answer, token=token)
    assert [len(one) for one in found] == [plan.num_tokens for plan in inputs.plans]
    assert distance(np.concatenate(found), expected) <= tolerances.GRADIENT
    assert expected.min() > 0


def test_videos_have_numbers_too(generator, photos):
    frames = [photos[0], photos[1], photos[0]]
    content = [{"type": "video", "video": frames, "fps": 1.0}, {"type": "image", "image": photos[1]}]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]
    (answer,) = generator.generate([chat], max_new_tokens=2)
    found = generator.explain(chat, [], answer)
    assert [len(one) for one in found] == [3 * 4, plan_of(photos[1], generator.config.tiling).num_tokens]
    (plain,) = generator.generate(["No picture."], max_new_tokens=2)
    assert generator.explain("No picture.", [], plain) == []


def test_the_answer_of_a_session_is_explained(generator, photos):
    session = generator.session(photos[:1])
    session.ask("What is it?", max_new_tokens=4)
    answer = session.ask("And this?", photos[1:], max_new_tokens=4)
    found = generator.explain(session.chat[:-1], photos, answer)
    assert [len(one) for one in found] == [plan_of(one, generator.config.tiling).num_tokens for one in photos]
    assert min(one.min() for one in found) > 0


def test_lengths_share_a_program_and_images_are_known(generator, photos, answer, monkeypatch, compilations):
    generator.explain(CHAT, photos, answer)
    (longer,) = generator.generate([CHAT], photos, max_new_tokens=40)
    monkeypatch.setattr("multipatch_jax.generate.visual_tokens.encode_images", lambda params, images, **how: images)
    compilations()
    generator.explain(CHAT, photos, longer)
    generator.explain(CHAT, photos, longer, token=7)
    assert not compilations()


def test_an_image_token_in_an_answer_is_no_image(generator, photos, answer):
    babble = dataclasses.replace(answer, ids=[IMAGE, *answer.ids])
    assert [len(one) for one in generator.explain(CHAT, photos, babble)] == [
        len(one) for one in generator.explain(CHAT, photos, answer)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# A model whose answer depends on the bright tile alone.


def black_but_for(row, col, side):
    """A picture of 4 x 4 tiles, all black but one."""
    picture = np.zeros((4 * side, 4 * side, 3), np.uint8)
    picture[row * side : (row + 1) * side, col * side : (col + 1) * side] = 255
    return picture


def normalised(layer, x):
    scale = np.asarray(layer["input_layernorm"]["scale"])[0]
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale


@pytest.fixture(scope="module")
def bright_tiles_reader(talker):
    """The first layer's attention, where a prompt ends, is all on bright tiles; the second layer attends to nothing."""
    config = dataclasses.replace(talker.config, tiling=dataclasses.replace(talker.config.tiling, global_tile=False))
    side = config.tiling.tile_size
    tokens = np.asarray(mp.encode_image(talker.params, black_but_for(0, 0, side), config=config))
    layers = talker.params["text_model"]["layers"]
    bright, dark = normalised(layers, tokens[:4]).mean(axis=0), normalised(layers, tokens[4:]).mean(axis=0)
    last = talker.processor(["Assistant:"], config=config).input_ids[0, -1]
    end = normalised(layers, np.asarray(talker.params["text_model"]["embed_tokens"]["embedding"])[last])
    slow = np.eye(16, dtype=np.float32)[7]  # positions hardly turn this part of keys and queries
    keys = np.outer(bright - dark, slow) / ((bright - dark) @ (bright - dark))
    queries = np.tile(np.outer(end, slow) / (end @ end), (1, 3))
    attention = layers["self_attn"]
    changed = {
        "k_proj": attention["k_proj"]["kernel"].at[0].set(keys),
        "q_proj": attention["q_proj"]["kernel"].at[0].set(60 * queries),  # of scores, after a division by 4
        "o_proj": attention["o_proj"]["kernel"].at[1].set(0),
    }
    attention = attention | {name: {"kernel": kernel} for name, kernel in changed.items()}
    text = talker.params["text_model"] | {"layers": layers | {"self_attn": attention}}
    params = talker.params | {"text_model": text}
    return mp.Generator(params, config=config, processor=talker.processor, max_length=512, eos_ids=())


@pytest.mark.parametrize(("row", "col"), [(0, 0), (1, 3), (3, 2)])
def test_the_most_lies_on_the_tile_that_the_answer_depends_on(row, col, bright_tiles_reader, tmp_path):
    generator = bright_tiles_reader
    picture = black_but_for(row, col, generator.config.tiling.tile_size)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the light?"}]}]
    (answer,) = generator.generate([chat], [picture], max_new_tokens=1)
    numbers = generator.explain(chat, [picture], answer)
    of_tiles = numbers[0].reshape(16, 4).sum(axis=1)
    assert of_tiles.argmax() == 4 * row + col
    assert of_tiles.max() > 0.9 * of_tiles.sum()
    figure = mp.plot.plot_saliency([picture], numbers, generator.config)
    opacity = np.asarray(figure.axes[1].images[1].get_array())[..., 3]
    assert opacity.shape == (8, 8)
    y, x = np.unravel_index(opacity.argmax(), opacity.shape)
    assert (y // 2, x // 2) == (row, col)
    figure.savefig(tmp_path / "light.png")


# ---------------------------------------------------------------------------------------------------------------------
# What is refused.


def test_what_does_not_fit_is_refused(generator, photos, answer):
    with pytest.raises(ValueError, match=r"answer must be to this chat and these images, whose prompt has"):
        generator.explain([{"role": "user", "content": "What is it?"}], [], answer)
    with pytest.raises(ValueError, match="token must be an integer from 0 to 5, got 6"):
        generator.explain(CHAT, photos, answer, token=6)
    with pytest.raises(ValueError, match="answer must be"):
        generator.explain(CHAT, photos, answer.text)
    with pytest.raises(ValueError, match=r"1 to 511 tokens"):
        generator.explain("<image>" * 9, [np.zeros((400, 400, 3), np.uint8)] * 9, answer)
