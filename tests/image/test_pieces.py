"""An image sent as its own bytes in pieces: nothing copied but the end, put together to the byte, and the caller's."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multipatch_jax.image import bucket_side, on_device, pieces, plan_tiles, prepare_image, tile_image, tile_image_host
from multipatch_jax.image.pieces import PIECE, cut_pieces, join_pieces, send_pieces
from tests.helpers.aligned import aligned
from tests.helpers.images import black_and_white, noise
from tests.helpers.tiling import SMALL, assert_same_bytes

joined = jax.jit(join_pieces)


def side_of(height: int, width: int) -> int:
    side = bucket_side(plan_tiles(height, width))
    assert side is not None
    return side


def assert_joins(image: np.ndarray) -> None:
    height, width, _ = image.shape
    side = side_of(height, width)
    got = np.asarray(joined(cut_pieces(image, side), np.int32(width)))
    assert got.shape == (side, side, 3)
    assert np.array_equal(got[:height, :width], image)


SIZES = [
    *((1, 1), (1, 2), (2, 1), (1, 1021), (1021, 1), (7, 1019), (1024, 1024), (1023, 1024), (1024, 1023)),  # 1024
    *((1025, 1), (1, 1025), (1031, 1013), (2048, 2048), (2047, 2048), (2048, 2047), (512, 2048)),  # 2048
    *((2049, 1), (1, 2049), (2053, 2039), (4096, 4096), (4095, 4096), (4096, 4095), (3000, 4000), (4096, 1)),  # 4096
]


@pytest.mark.parametrize("size", SIZES)
def test_pieces_join_to_the_image(size):
    assert_joins(noise(*size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(0, 9))
def test_pieces_of_any_size_join_to_the_image(height, width, seed):
    assert_joins(noise(height, width, seed))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2, 1::3],
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: x[..., ::-1],
        lambda x: x.swapaxes(0, 1),
        lambda x: x[3:, 5:],
        np.asfortranarray,
        lambda x: np.broadcast_to(x[:1], x.shape),
    ],
)
def test_arrays_of_any_layout(view):
    assert_joins(view(noise(211, 307)))


def test_read_only_memory():
    image = np.frombuffer(noise(1100, 1030).tobytes(), np.uint8).reshape(1100, 1030, 3)
    assert not image.flags.writeable
    assert_joins(image)


def test_only_the_last_piece_is_copied():
    image = noise(1500, 1700)  # 7.3 pieces
    cut = cut_pieces(image, 2048)
    assert len(cut) == 2048 * 2048 * 3 // PIECE == 4
    assert [np.shares_memory(piece, image) for piece in cut] == [True, True, False, False]
    assert cut[2] is cut[3]
    whole = cut_pieces(noise(2048, 2048), 2048)
    assert len({id(piece) for piece in whole}) == 4


def test_a_piece_is_sent_once():
    times = []

    def send(piece):
        times.append(piece)
        return len(times)

    assert send_pieces(cut_pieces(noise(1500, 1700), 2048), send) == (1, 2, 3, 3)
    assert len(times) == 3


@pytest.mark.parametrize("size", [(60, 64), (300, 451), (451, 300), (1, 900), (1500, 90), (700, 200), (1031, 1033)])
def test_tiles_made_of_pieces(size):
    image = black_and_white(*size)
    assert_same_bytes(tile_image(image, SMALL, implementation="batched"), tile_image_host(image, SMALL))


def test_all_images_of_a_bucket_have_pieces_of_one_shape():
    shapes = {
        tuple(jax.tree.map(np.shape, prepare_image(noise(*size), form="batched").pixels))
        for size in ((1025, 3), (2048, 2048), (1100, 1500))
    }
    assert shapes == {((PIECE,),) * 4}


@pytest.mark.parametrize("form", ["gather", "batched"])
def test_the_caller_may_change_the_image_at_once(form):
    image = aligned(black_and_white(1024, 1024))
    tile_image(image, SMALL, implementation=form).block_until_ready()  # compiled
    for seed in range(3):
        image[:] = black_and_white(1024, 1024, seed)
        expected = tile_image_host(image, SMALL)
        got = tile_image(image, SMALL, implementation=form)
        image[:] = 7
        assert_same_bytes(got, expected)


def test_pieces_are_awaited_before_the_caller_gets_the_image_back(monkeypatch):
    """A GPU reads the caller's memory while it is sent."""
    steps = []
    monkeypatch.setattr(pieces.jax, "block_until_ready", lambda arrays: steps.append(("awaited", arrays)))
    with on_device(cut_pieces(noise(30, 40), 1024)) as arrays:
        steps.append(("program", arrays))
    assert steps == [("program", arrays), ("awaited", arrays)]
    square = np.zeros((4, 4, 3), np.uint8)
    with on_device(square) as same:
        assert same is square
