"""`multipatch-jax encode`: the file of tokens, and pictures of the grid and of the tokens."""

import json

import numpy as np
from PIL import Image
from safetensors import safe_open

import multipatch_jax as mp


def test_encode_writes_tokens_and_plans(run, tiny, photo, photo_file, tmp_path):
    square = tmp_path / "square.png"
    Image.fromarray(photo[:100, :100]).save(square)
    out = tmp_path / "tokens.safetensors"
    status, printed, _ = run("encode", photo_file, square, "--model", tiny.folder, "--out", out)
    assert status == 0
    assert "300 x 451 -> 3 x 4 tiles + global = 13 tiles, 52 tokens" in printed
    assert "52 tokens of width 48, float32" in printed
    with safe_open(out, "numpy") as file:
        entries = json.loads(file.metadata()["images"])
        assert [entry["num_tiles"] for entry in entries] == [13, 17]
        assert entries[0]["file"] == str(photo_file)
        for entry, image in zip(entries, (photo, photo[:100, :100]), strict=True):
            expected = mp.encode_tiles(tiny.params, mp.tile_image_host(image, tiny.config.tiling), config=tiny.config)
            got = file.get_tensor(entry["key"])
            np.testing.assert_allclose(got, np.asarray(expected).reshape(got.shape), rtol=1e-4, atol=1e-5)


def test_overlay_is_a_picture_of_the_grid(run, tiny, photo, photo_file, tmp_path):
    overlay = tmp_path / "grid.png"
    args = ("--model", tiny.folder, "--out", tmp_path / "tokens.safetensors", "--overlay", overlay)
    status, _, _ = run("encode", photo_file, *args)
    assert status == 0
    picture = np.asarray(Image.open(overlay))
    lines = np.all(picture == (255, 64, 96), axis=-1)
    assert lines[:, 512].sum() > 300  # the border between the second and the third column of tiles
    assert lines[:, 400].sum() < 30
    plain = np.asarray(Image.fromarray(photo).resize((1024, 681), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(picture[100:200, 60:240], plain[100:200, 60:240])


def test_pca_is_a_picture(run, tiny, photo_file, tmp_path):
    args = ("--model", tiny.folder, "--out", tmp_path / "tokens.safetensors", "--pca", tmp_path / "pca.png")
    status, printed, _ = run("encode", photo_file, *args)
    assert status == 0
    assert "pca.png" in printed
    assert Image.open(tmp_path / "pca.png").width > 500
