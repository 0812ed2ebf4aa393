"""The picture of the pipeline: true numbers, the pictures that they are of, and no text over another."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import multipatch_jax as mp
from multipatch_jax.plot.sketches import clipped, unshuffle_colors
from tests.helpers.images import plan_of
from tests.helpers.models import NO_GLOBAL, TINY, UNSPLIT

PROMPT = "<|im_start|>User:<image>Read the numbers.<end_of_utterance>\nAssistant:"
WIDEST = [mp.PRESETS[name] for name in ("SmolVLM-256M-Instruct", "SmolVLM-Instruct", "Idefics3-8B-Llama3")]
LONG = "A long text of $5 words that goes on and on_1 and never ends, it seems. " * 12


def plotted(image, config, prompt=PROMPT, answer="42 508 7"):
    """A figure of random tokens, and those tokens."""
    plan = plan_of(image, config.tiling)
    tokens = np.random.default_rng(0).normal(size=(plan.num_tokens, 8)).astype(np.float32)
    return mp.plot.plot_pipeline(image, tokens, config, prompt=prompt, answer=answer), tokens


def texts(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_its_numbers_are_those_of_the_config(photo):
    config = mp.PRESETS["SmolVLM-256M-Instruct"]
    figure, _ = plotted(photo, config)
    said = "\n".join(text.get_text() for text in texts(figure))
    for line in (
        "300 x 451 pixels",
        "13 tiles of 512 x 512 pixels\n3 x 4, and the whole image",
        "32 x 32 patches a tile\n12 layers of width 768",
        "4 x 4 patches make one token:\n16 · 768 = 12,288 numbers,\nprojected to 576",
        "832 of width 576\n8 x 8 a tile",
        "832 tokens",
        "30 layers of width 576",
        "42 508 7",
        "Read the numbers.",
    ):
        assert line in said


def test_its_pictures_are_the_tiles_and_the_tokens(photo):
    figure, tokens = plotted(photo, TINY)
    drawn = [image.get_array() for image in figure.axes[0].images]
    np.testing.assert_array_equal(drawn[0], photo)
    tiles = mp.tile_image_host(photo, TINY.tiling)
    np.testing.assert_array_equal(drawn[1 : 1 + len(tiles)], tiles)
    colors = mp.plot.pca_colors(tokens).reshape(len(tiles), 2, 2, 3)
    np.testing.assert_allclose(drawn[-len(tiles) :], colors)
    places = [image.get_extent() for image in figure.axes[0].images[1 : len(tiles)]]
    assert places == sorted(places, key=lambda place: (-place[3], place[0]))  # rows from the top, from left to right


@pytest.mark.parametrize("config", [TINY, UNSPLIT, NO_GLOBAL, *WIDEST])
@pytest.mark.parametrize(("prompt", "answer"), [(PROMPT, "7"), (LONG + "<image>" + LONG, LONG), ("", "")])
def test_no_text_lies_over_another_or_beyond_the_edge(config, prompt, answer, photo):
    figure, _ = plotted(photo, config, prompt, answer)
    canvas = FigureCanvasAgg(figure)
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts(figure)]
    assert len(boxes) > 10
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.padded(4).overlaps(second.padded(4)), (one, other)


@pytest.mark.parametrize("config", [TINY, UNSPLIT, NO_GLOBAL])
@pytest.mark.parametrize(("height", "width"), [(90, 20), (12, 400)])
def test_it_can_be_saved(config, height, width, photo, tmp_path):
    figure, _ = plotted(photo[:height, :width], config, "no place for an image", "$\\frac$")
    figure.savefig(tmp_path / "pipeline.png")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "pipeline.png")))) > 50


def test_a_stripe_is_a_patch():
    """The colours of a block of patches, row by row, are the stripes of its token."""
    patches, tokens = unshuffle_colors(8, 2)
    assert (patches.shape, tokens.shape) == ((8, 8, 3), (4, 16, 3))
    for row, col in ((0, 0), (3, 1)):
        block = patches[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(4, 3)
        np.testing.assert_array_equal(tokens[row, 4 * col : 4 * col + 4], block)
    assert len(np.unique(patches.reshape(-1, 3), axis=0)) == 4


def test_a_text_is_cut_where_it_is_too_long():
    assert clipped("one two three", 7, 2) == "one two\nthree"
    assert clipped("one two three four", 7, 2) == "one two\nthree…"
    assert clipped("abcdefghij", 4, 2) == "abcd\nefg…"
    assert clipped("", 4, 2) == ""


def test_what_does_not_fit_is_refused(photo):
    tokens = np.zeros((52, 8), np.float32)
    with pytest.raises(ValueError, match=r"tokens must be of shape \(52, D\) for this plan, got \(51, 8\)"):
        mp.plot.plot_pipeline(photo, tokens[1:], TINY, prompt="", answer="")
    with pytest.raises(ValueError, match="answer must be a str"):
        mp.plot.plot_pipeline(photo, tokens, TINY, prompt="", answer=7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Expected a NumPy array"):
        mp.plot.plot_pipeline("photo.jpg", tokens, TINY, prompt="", answer="")  # pyright: ignore[reportArgumentType]
