"""The project's own promises: clean checks, a small surface, a README whose commands exist."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import multipatch_jax as mp
from multipatch_jax import native

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"], ["pyright"]])
def test_checks_are_clean(command):
    extra = ["--pythonpath", sys.executable] if command == ["pyright"] else []
    done = subprocess.run([sys.executable, "-m", *command, *extra], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_needs_neither_torch_nor_transformers():
    code = "import sys, multipatch_jax; print({'torch', 'transformers', 'orbax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_all_is_what_there_is():
    for name in mp.__all__:
        assert hasattr(mp, name)
    public = {name for name in vars(mp) if not name.startswith("_") and not isinstance(getattr(mp, name), type(ast))}
    assert public == set(mp.__all__)


def test_a_module_imports_only_from_upstream():
    order = """config presets image tiling resample preprocess linear native attention vision connector processor
        retrieval weights lora hf_config hf_names hf_folder hub checkpoint encode export tile_queue cache stream packing
        video chat text compiles losses trainable sharding training train_checkpoint fit
        viz plots cli __main__""".split()
    for place, name in enumerate(order):
        tree = ast.parse((ROOT / "multipatch_jax" / f"{name}.py").read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        for module in imported:
            if module.startswith("multipatch_jax."):
                assert module.removeprefix("multipatch_jax.") in order[:place], f"{name} imports {module}"
    files = {path.stem for path in (ROOT / "multipatch_jax").glob("*.py")}
    assert files == {*order, "__init__"}


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler here")
def test_where_there_is_a_compiler_the_encoder_was_built():
    """Or all of test_native would be skipped and no one would know."""
    assert native.builds()


def test_the_readmes_commands_exist():
    commands = re.findall(r"multipatch-jax (\w+)", README)
    assert set(commands) == {"demo", "convert", "encode", "export", "plan"}
    for command in set(commands):
        done = subprocess.run(
            [sys.executable, "-m", "multipatch_jax", command, "--help"], capture_output=True, check=False
        )
        assert done.returncode == 0


def test_the_readmes_tables_of_tiles_are_true():
    for height, width, *cells in re.findall(r"^\| (\d+) x (\d+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", README, re.M):
        policies = ({}, {"upscale": False}, {"max_tiles": 5}, {"global_tile": False})
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
    code = re.search(r"```python\n(.+?)```", README, re.S).group(1)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    code = code.replace("HuggingFaceTB/SmolVLM-256M-Instruct", str(tiny.folder))
    code = code.replace("photo.jpg", str(tmp_path / "photo.jpg"))
    names = {"array": photo}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == "3 4 13 52\n"
    assert names["tokens"].shape == (13, 4, 48)
