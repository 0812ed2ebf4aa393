"""README.md and docs/: the site builds, links and commands exist, tables are true, words are spelt."""

import importlib
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from typing import Any

import pytest

import multipatch_jax as mp
from tests.helpers.processes import run_python
from tests.helpers.project import PAGES, README, ROOT, examples, section

NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
PROSE = "\n".join(PAGES.values())


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_the_site_builds_without_a_warning_or_a_network(tmp_path):
    """A link or an anchor that leads nowhere, or a page that the navigation lacks, is a warning."""
    command = ["-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = run_python(*command, cwd=ROOT, changes=NO_NETWORK | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img)[^>]* src="?https?:|<link[^>]* rel="?stylesheet[^>]* href="?https?:', html)
    for page in (ROOT / "docs/api").glob("*.md"):
        if page.stem in ("index", "config"):
            continue
        html = (tmp_path / "site/api" / page.stem / "index.html").read_text(encoding="utf-8")
        public = importlib.import_module(f"multipatch_jax.{page.stem}").__all__
        # A function in a file of its own name, as corpus.run is, is documented where the file is.
        room = f'id="multipatch_jax.{page.stem}'
        lost = [one for one in public if f'{room}.{one}"' not in html and f'{room}.{one}.{one}"' not in html]
        assert not lost, f"{page.name} lacks {lost}: they have no docstring"


def test_the_front_doors_page_has_every_name():
    named = re.findall(r"\[`(?:mp\.)?(\w+)`\]", PAGES["docs/api/index.md"])
    assert sorted(named) == sorted(mp.__all__)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/reader/README.md"])
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / link).exists(), link


def test_files_that_are_named_exist():
    folders = "benchmarks|convert|docs|examples|multipatch_jax|multipatch_reference|native|notebooks|tests"
    for path in set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)", PROSE)):
        assert (ROOT / path).exists() or "NAME" in path, path


def test_words_are_spelt():
    folders = ["multipatch_jax", "multipatch_reference", "convert", "benchmarks", "examples", "native", "tests"]
    files = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "setup.cfg", "pyproject.toml", "mkdocs.yml"]
    command = [sys.executable, "-m", "codespell_lib", *files, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Commands.


def shell_lines() -> list[str]:
    """Every line of the pages' shell examples."""
    return "".join("".join(examples(page, language="bash")) for page in PAGES).splitlines()


def parse(arguments: list[str]) -> Any:
    """What the command line makes of its arguments."""
    return importlib.import_module("multipatch_jax.cli.main")._parser().parse_args(arguments)


def test_shell_examples_are_commands_with_their_flags():
    rests = [line.partition("multipatch-jax ")[2] for line in shell_lines() if "multipatch-jax " in line]
    commands = {parse(shlex.split(rest, comments=True)).command for rest in rests}
    assert commands == {"demo", "convert", "encode", "export", "plan", "ask", "corpus"}


def test_commands_in_sentences_have_their_flags(capsys):
    for command, rest in set(re.findall(r"`multipatch-jax\s(\w+)([^`]*)`", PROSE)):
        with pytest.raises(SystemExit, match="0"):
            parse([command, "--help"])
        help_text = capsys.readouterr().out
        assert all(flag in help_text for flag in re.findall(r"--[\w-]+", rest)), (command, rest)


def test_benchmarks_and_scripts_that_are_named_exist_with_their_flags():
    shared = (ROOT / "benchmarks/shared/options.py").read_text() + (ROOT / "multipatch_jax/cli/model.py").read_text()
    modules = re.findall(r"python -m\s((?:benchmarks|examples|tests)\.[a-z][\w.]+)([^`\n|#]*)", PROSE)
    scripts = re.findall(r"python (convert/\w+)\.py([^`\n|#]*)", PROSE)
    assert len(modules) > 20
    assert len(scripts) > 2
    for name, rest in modules + scripts:
        source = (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8") + shared
        assert all(f'"{flag}"' in source for flag in re.findall(r"--[\w-]+", rest)), (name, rest)


def test_the_table_of_extras_has_them_all():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    rows = re.findall(r"^\| (`.+?`) \|", section("docs/quickstart.md", "Two commands"), re.M)
    extras = set(re.findall(r"`([\w-]+)`", " ".join(rows)))
    assert extras == set(setup["options.extras_require"])
    assert set(re.findall(r'install[^\n]* "[\w.]+\[([\w-]+)\]"', PROSE)) <= extras


# ---------------------------------------------------------------------------------------------------------------------
# Tables.


def test_the_table_of_tiles_is_true():
    page = PAGES["docs/concepts.md"]
    rows = re.findall(r"^\| (\d+) x (\d+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", page, re.M)
    assert len(rows) == 5
    policies: tuple[dict[str, Any], ...] = ({}, {"upscale": False}, {"max_tiles": 5}, {"global_tile": False})
    for height, width, *cells in rows:
        for cell, policy in zip(cells, policies, strict=True):
            plan = mp.plan_tiles(int(height), int(width), mp.TilingConfig(**policy))
            tiles = "1 tile" if plan.num_tiles == 1 else f"{plan.num_tiles} tiles"
            assert cell == f"{tiles}, {plan.num_tokens} tokens", (height, width, policy)


def test_the_table_of_models_is_true():
    page = PAGES["docs/checkpoints.md"]
    rows = re.findall(r"^\| ([\w.-]+)[^|]* \| SigLIP[^|]*\| (\d+) \| (\d+) \| (\d+) \| (.+) \|$", page, re.M)
    assert len(rows) == 4
    for name, tile, tokens, width, cost in rows:
        config = mp.PRESETS[name]
        plan = mp.plan_tiles(3000, 4000, config.tiling)
        assert (config.tiling.tile_size, config.tiling.tokens_per_tile) == (int(tile), int(tokens))
        assert config.connector.text_hidden_size == int(width)
        assert cost == f"{plan.num_tiles} tiles, {plan.num_tokens} tokens"
