"""An image to tokens: those of its tiles, also inside the user's own transformations; no needless compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.images import noise, plan_of


@pytest.mark.parametrize("size", [(300, 451), (200, 90), (64, 64), (1, 1), (5, 700), (5000, 40)])
def test_encode_image_is_the_tiles_tokens_in_order(size, tiny):
    image = noise(*size)
    tiles = mp.tile_image_host(image, tiny.config.tiling)
    expected = np.asarray(mp.encode_tiles(tiny.params, tiles, config=tiny.config)).reshape(-1, 48)
    got = mp.encode_image(tiny.params, image, config=tiny.config)
    assert len(got) == plan_of(image, tiny.config.tiling).num_tokens
    assert distance(got, expected) <= tolerances.SAME_PROGRAM


@pytest.mark.gpu
def test_every_kind_of_source_gives_the_same_tokens(tiny, photo, tokens, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    for source in (photo, jnp.asarray(photo), Image.fromarray(photo), path, str(path), path.read_bytes()):
        got = mp.encode_image(tiny.params, source, config=tiny.config)
        assert distance(got, tokens.reshape(-1, 48)) <= tolerances.SAME_PROGRAM


def test_a_batch_equals_its_images_one_by_one(tiny):
    batch = np.stack([noise(50, 90, seed) for seed in range(3)])
    expected = np.stack([mp.encode_image(tiny.params, image, config=tiny.config) for image in batch])
    for images in (batch, jnp.asarray(batch)):
        got = mp.encode_image(tiny.params, images, config=tiny.config)
        assert got.shape == (3, 52, 48)
        assert distance(got, expected) <= tolerances.SAME_PROGRAM


# ---------------------------------------------------------------------------------------------------------------------
# Inside the user's own transformations.


@pytest.mark.gpu
def test_in_the_users_jit_and_vmap(tiny, photo, tokens):
    def encode(params, image):
        return mp.encode_image(params, image, config=tiny.config)

    assert distance(jax.jit(encode)(tiny.params, photo), tokens.reshape(-1, 48)) <= tolerances.SAME_PROGRAM
    batch = jnp.stack([jnp.asarray(photo), jnp.asarray(photo[::-1])])
    mapped = jax.jit(jax.vmap(encode, in_axes=(None, 0)))(tiny.params, batch)
    assert distance(mapped[0], tokens.reshape(-1, 48)) <= tolerances.SAME_PROGRAM
    assert distance(mapped[1], encode(tiny.params, photo[::-1])) <= tolerances.SAME_PROGRAM


@pytest.mark.gpu
def test_gradients_reach_every_parameter(tiny):
    image = jnp.asarray(noise(64, 64))
    gradients = jax.grad(lambda p: mp.encode_image(p, image, config=tiny.config).std())(
        {key: tiny.params[key] for key in ("vision_model", "connector")}
    )
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all()
        if "k_proj" in str(path) and "bias" in str(path):
            continue  # softmax does not see a constant added to all keys, so this gradient is zero but for rounding
        assert np.abs(gradient).max() > 0, path


def test_the_program_calls_no_host(tiny, photo):
    lowered = jax.jit(lambda p, x: mp.encode_image(p, x, config=tiny.config)).lower(tiny.params, photo)
    text = lowered.as_text()
    assert "dot_general" in text
    assert "callback" not in text
    assert "infeed" not in text


def test_a_second_image_of_the_same_shape_compiles_nothing(tiny, compilations):
    jax.clear_caches()
    for make in (np.asarray, jnp.asarray):
        images = [make(noise(70, 110, seed)) for seed in range(3)]
        mp.encode_image(tiny.params, images[0], config=tiny.config)
        assert compilations() != []
        for image in images[1:]:
            mp.encode_image(tiny.params, image, config=tiny.config)
        assert compilations() == []


def test_another_size_of_the_same_grid_compiles_nothing(tiny, compilations):
    mp.encode_image(tiny.params, noise(70, 110), config=tiny.config)
    compilations()
    for size in ((71, 111), (110, 70), (150, 230)):  # 3 x 4 and 4 x 3 tiles
        mp.encode_image(tiny.params, noise(*size), config=tiny.config)
    assert compilations() == []


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"np.moveaxis\(x, 0, -1\)"),
        (np.zeros((20, 30), np.uint8), r"\(H, W, C\)"),
        (np.zeros((20, 30, 5), np.uint8), "C = 1, 3 or 4, got shape"),
        (np.zeros((20, 30, 3), np.int32), "uint8.* got int32"),
        (np.full((20, 30, 3), np.nan, np.float32), r"must lie in \[0, 1\]"),
        (np.full((20, 30, 3), 200.0), r"must lie in \[0, 1\]"),
        (np.zeros((0, 30, 3), np.uint8), "at least one pixel"),
        (np.zeros((0, 20, 30, 3), np.uint8), "at least one image"),
        (jnp.zeros((3, 20, 30), jnp.uint8), r"uint8 of shape \(H, W, 3\)"),
        (jnp.zeros((20, 30, 3), jnp.float32), "image must be uint8 .* got float32"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(image, message, tiny, compilations):
    compilations()
    with pytest.raises(ValueError, match=message):
        mp.encode_image(tiny.params, image, config=tiny.config)
    assert compilations() == []


def test_a_file_that_is_not_an_image_is_refused(tiny, tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not pixels")
    with pytest.raises(mp.ImageError, match=r"notes\.jpg"):
        mp.encode_image(tiny.params, path, config=tiny.config)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        mp.encode_image(tiny.params, tmp_path / "missing.jpg", config=tiny.config)
