"""The command line as a person meets it: what it prints, what it writes, and what it leaves behind when it fails."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import multipatch_jax as mp
from multipatch_jax.cli import main


@pytest.fixture
def photo_file(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def run(capsys, *args):
    status = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return status, out, err


def test_plan(capsys):
    status, out, _ = run(capsys, "plan", 3000, 4000)
    assert status == 0
    assert out.splitlines()[0] == "3000 x 4000 -> 3 x 4 tiles + global = 13 tiles, 832 tokens"
    assert "1536 x 2048" in out


def test_plan_of_another_model(capsys, tiny):
    _, out, _ = run(capsys, "plan", 3000, 4000, "--model", "Idefics3-8B-Llama3")
    assert "13 tiles, 2197 tokens" in out
    _, out, _ = run(capsys, "plan", 100, 100, "--model", tiny.folder)
    assert "17 tiles, 68 tokens" in out


def test_encode_writes_tokens_and_plans(capsys, tiny, photo, photo_file, tmp_path):
    square = tmp_path / "square.png"
    Image.fromarray(photo[:100, :100]).save(square)
    out = tmp_path / "tokens.safetensors"
    status, printed, _ = run(capsys, "encode", photo_file, square, "--model", tiny.folder, "--out", out)
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


def test_overlay_is_a_picture_of_the_grid(capsys, tiny, photo, photo_file, tmp_path):
    overlay = tmp_path / "grid.png"
    args = ("--model", tiny.folder, "--out", tmp_path / "tokens.safetensors", "--overlay", overlay)
    status, _, _ = run(capsys, "encode", photo_file, *args)
    assert status == 0
    picture = np.asarray(Image.open(overlay))
    lines = np.all(picture == (255, 64, 96), axis=-1)
    assert lines[:, 512].sum() > 300  # the border between the second and the third column of tiles
    assert lines[:, 400].sum() < 30
    plain = np.asarray(Image.fromarray(photo).resize((1024, 681), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(picture[100:200, 60:240], plain[100:200, 60:240])


def test_pca_is_a_picture(capsys, tiny, photo_file, tmp_path):
    args = ("--model", tiny.folder, "--out", tmp_path / "tokens.safetensors", "--pca", tmp_path / "pca.png")
    status, printed, _ = run(capsys, "encode", photo_file, *args)
    assert status == 0
    assert "pca.png" in printed
    assert Image.open(tmp_path / "pca.png").width > 500


def test_convert_then_encode_gives_the_same_tokens(capsys, tiny, photo_file, tmp_path):
    status, printed, _ = run(capsys, "convert", tiny.folder, tmp_path / "converted")
    assert status == 0
    for word in ("tensors", "parameters", "dtype", "bytes", "seconds", "float32"):
        assert word in printed
    for name in ("converted", tiny.folder):
        out = tmp_path / f"{hash(name)}.safetensors"
        assert run(capsys, "encode", photo_file, "--model", tmp_path / name, "--out", out)[0] == 0
    first, second = (safe_open(path, "numpy").get_tensor("tokens_0") for path in tmp_path.glob("*.safetensors"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("encode no.jpg --model MODEL --out o", "no.jpg"),
        ("encode text.jpg --model MODEL --out o", "text.jpg"),
        ("encode cat.png --model nowhere --out o", "There is no folder nowhere, and it is not a hub id"),
        ("encode cat.png --model . --out o", "is not a model's folder"),
        ("encode cat.png --model MODEL --out no/o", "There is no folder no to write o into"),
        ("encode cat.png --model MODEL --out o --overlay x.abc", "--overlay writes .png"),
        ("encode cat.png cat.png --model MODEL --out o --overlay p.png", "draws one photo, got 2"),
        ("plan 0 10", "height must be a positive number of pixels, got 0"),
        ("plan 10 10 --model GPT", "one of SmolVLM-256M-Instruct"),
        ("convert MODEL text.jpg", "text.jpg exists; delete it or choose another name"),
        ("convert . o", "is not a model's folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, message, capsys, tiny, photo_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("not an image")
    before = sorted(tmp_path.iterdir())
    status, _, err = run(capsys, *command.replace("MODEL", str(tiny.folder)).split())
    assert status == 2
    assert message in err
    assert err.startswith("multipatch-jax ")
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_report_of_many_tensors_is_one_line_too(capsys, tiny, photo_file, tmp_path):
    model = shutil.copytree(tiny.folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (model / "config.json").write_text(json.dumps(config))
    status, _, err = run(capsys, "encode", photo_file, "--model", model, "--out", tmp_path / "o")
    assert status == 2
    assert " - model.vision_model.encoder.layers.2.mlp.fc1.bias (128,)" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_wrong_usage_exits_with_2_and_help_teaches(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["encode"])
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "multipatch-jax plan 3000 4000" in capsys.readouterr().out


def test_demo_on_random_weights_of_the_real_shapes(tmp_path):
    """The README's first command, in a process of its own: a real photograph through all of SmolVLM-256M's tower."""
    command = [sys.executable, "-m", "multipatch_jax", "demo", "--random-weights", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the tokens below mean nothing" in done.stdout
    assert "300 x 451 -> 3 x 4 tiles + global = 13 tiles, 832 tokens" in done.stdout
    with safe_open(tmp_path / "demo" / "tokens.safetensors", "numpy") as file:
        tokens = file.get_tensor("tokens_0")
    assert tokens.shape == (832, 576)
    assert np.isfinite(tokens).all()
    assert Image.open(tmp_path / "demo" / "tiles.png").width > 1000
    assert Image.open(tmp_path / "demo" / "pca.png").width > 500
