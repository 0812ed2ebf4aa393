"""A mistake on the command line gives one line and exit status 2, and leaves no file behind."""

import json
import re
import shutil

import pytest


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
def test_bad_input_is_one_line_and_leaves_nothing(command, message, run, tiny, photo_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("not an image")
    before = sorted(tmp_path.iterdir())
    status, _, err = run(*command.replace("MODEL", str(tiny.folder)).split())
    assert status == 2
    assert message in err
    assert err.startswith("multipatch-jax ")
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_report_of_many_tensors_is_one_line_too(run, tiny, photo_file, tmp_path):
    model = shutil.copytree(tiny.folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (model / "config.json").write_text(json.dumps(config))
    status, _, err = run("encode", photo_file, "--model", model, "--out", tmp_path / "o")
    assert status == 2
    assert " - model.vision_model.encoder.layers.2.mlp.fc1.bias (128,)" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_wrong_usage_exits_with_2_and_help_teaches(run):
    assert run("encode")[0] == 2
    assert run("nonsense")[0] == 2
    status, out, _ = run("--help")
    assert status == 0
    assert "multipatch-jax plan 3000 4000" in out
    for command in ("encode", "plan", "convert", "export", "ask", "demo", "corpus"):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert "for example:" in out


def test_without_a_command_the_help_is_printed(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out == run("--help")[1]
    session = re.findall(r"^  multipatch-jax (\w+)", out, re.MULTILINE)
    assert session[:2] == ["demo", "ask"]
    assert set(session) <= {"demo", "ask", "plan", "convert", "encode", "corpus"}
