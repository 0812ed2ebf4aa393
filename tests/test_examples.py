"""The README's promises: commands that exist, tables that are true, examples that run."""

import re
from typing import Any

import numpy as np
from PIL import Image

import multipatch_jax as mp
from tests.helpers.processes import run_python
from tests.helpers.project import README, readme_examples


def test_the_readmes_commands_exist():
    commands = re.findall(r"multipatch-jax (\w+)", README)
    assert set(commands) == {"demo", "convert", "encode", "export", "plan", "ask"}
    for command in set(commands):
        assert run_python("-m", "multipatch_jax", command, "--help").returncode == 0


def test_the_readmes_tables_of_tiles_are_true():
    for height, width, *cells in re.findall(r"^\| (\d+) x (\d+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", README, re.M):
        policies: tuple[dict[str, Any], ...] = ({}, {"upscale": False}, {"max_tiles": 5}, {"global_tile": False})
        for cell, policy in zip(cells, policies, strict=True):
            plan = mp.plan_tiles(int(height), int(width), mp.TilingConfig(**policy))
            tiles = "1 tile" if plan.num_tiles == 1 else f"{plan.num_tiles} tiles"
            assert cell == f"{tiles}, {plan.num_tokens} tokens", (height, width, policy)
    for name, tile, tokens, width, cost in re.findall(
        r"^\| ([\w.-]+)[^|]* \| SigLIP[^|]*\| (\d+) \| (\d+) \| (\d+) \| (.+) \|$", README, re.M
    ):
        config = mp.PRESETS[name]
        plan = mp.plan_tiles(3000, 4000, config.tiling)
        assert (config.tiling.tile_size, config.tiling.tokens_per_tile) == (int(tile), int(tokens))
        assert config.connector.text_hidden_size == int(width)
        assert cost == f"{plan.num_tiles} tiles, {plan.num_tokens} tokens"


def test_the_readmes_ten_lines_run(tiny, photo, tmp_path, capsys):
    code = readme_examples()[0]
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    code = code.replace("HuggingFaceTB/SmolVLM-256M-Instruct", str(tiny.folder))
    code = code.replace("photo.jpg", str(tmp_path / "photo.jpg"))
    names: dict[str, Any] = {"array": photo}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == "3 4 13 52\n"
    assert names["tokens"].shape == (13, 4, 48)


def test_the_readmes_training_examples_run(tiny, photo, tmp_path, monkeypatch):
    """With a small model and few steps. The folder that the first one saves is loaded."""
    connector, tower = readme_examples("Training")
    monkeypatch.chdir(tmp_path)
    tiles = mp.tile_image_host(photo, tiny.config.tiling)[:9]
    names: dict[str, Any] = {"tiles": tiles, "teacher": np.ones((9, 4, 1024), np.float32), "num_steps": 20}
    code = connector.replace("HuggingFaceTB/SmolVLM-256M-Instruct", str(tiny.folder)) + tower
    exec(compile(code, "README.md", "exec"), names)
    config, params = mp.from_pretrained("new-connector")
    assert mp.encode_tiles(params, tiles[:2], config=config).shape == (2, 4, 1024)
    assert np.isfinite(names["metrics"]["loss"])
