"""The project's own promises: clean checks, a small surface, rooms that import only from upstream."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import multipatch_jax as mp
from multipatch_jax.nn import native
from tests.helpers.processes import python_output
from tests.helpers.project import ROOT


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"], ["pyright"]])
def test_checks_are_clean(command):
    if command == ["pyright"]:
        pytest.importorskip("torch", reason="pyright looks at the code that calls the reference too")
    extra = ["--pythonpath", sys.executable] if command == ["pyright"] else []
    done = subprocess.run([sys.executable, "-m", *command, *extra], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_needs_neither_torch_nor_transformers():
    code = "import sys, multipatch_jax; print({'torch', 'transformers', 'orbax', 'optax'} & set(sys.modules))"
    assert python_output("-c", code).strip() == "set()"


def test_the_changelog_begins_with_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changelog, re.MULTILINE)
    assert heading
    assert heading[1] in (mp.__version__, "Unreleased")
    assert heading[2] or heading[1] == "Unreleased"


def test_all_lists_every_public_name():
    assert all(hasattr(mp, name) for name in mp.__all__)
    assert len(mp.__all__) <= 48
    modules = {"arguments", "cli", "config", "files", "resamplers"}  # imported by the rooms, not offered to users
    modules |= {"importlib", "Any", "TYPE_CHECKING"}
    public = {name for name in vars(mp) if not name.startswith("_")}
    assert public - modules == set(mp.__all__)


# From upstream to downstream: a room imports only from what stands before it, and only through the door (`__init__`).
TOP = ("arguments", "files", "resamplers", "config", "presets")
ROOMS = (*TOP, "image", "nn", "params", "checkpoint", "encode", "text", "generate", "train", "plot", "corpus", "cli")
PACKAGE = ROOT / "multipatch_jax"


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, without the package's own name in front."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "multipatch_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("multipatch_jax."):
            module = str(node.module).removeprefix("multipatch_jax.")
            names = [alias.name for alias in node.names]
            folder = PACKAGE / module.replace(".", "/")
            found |= {f"{module}.{name}" if (folder / f"{name}.py").exists() else module for name in names}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "multipatch_jax"]
            found |= {name.removeprefix("multipatch_jax").removeprefix(".") for name in names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_upstream_and_through_doors(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for module in imports(path):
        other = module.split(".")[0]
        if room == "cli" and module == "":  # written as a user would: `import multipatch_jax as mp`
            continue
        if other != room:
            assert other in ROOMS[: ROOMS.index(room)], f"{path.name} imports {module}, which is not upstream of {room}"
            assert module == other, f"{path.name} imports {module} past the door of {other}"


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir()])
def test_no_files_of_a_room_import_each_other_in_a_circle(room):
    paths = {
        str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
        for path in (PACKAGE / room).rglob("*.py")
    }
    waiting = {name: (imports(path) & paths.keys()) - {name} for name, path in paths.items()}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"a circle among {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


def test_rooms_are_few_and_files_short():
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    assert len(folders) <= 12
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == {*TOP, "__init__", "__main__"}
    assert len(files) <= 10
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 300, path


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler here")
def test_where_there_is_a_compiler_the_encoder_was_built():
    """Without it tests/nn/test_native.py would be skipped, and nobody would notice."""
    assert native.builds()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles_evaluates_or_fetches(path):
    """As SECURITY.md says; only the hub's own client opens connections."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        unsafe = {
            "pickle",
            "cloudpickle",
            "dill",
            "marshal",
            "requests",
            "httpx",
            "urlopen",
            "urlretrieve",
            "subprocess",
        }
        assert not unsafe & set(names), path
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "urllib.request.urlopen"), path
            if called in ("np.load", "numpy.load"):
                assert "allow_pickle=False" in ast.unparse(node), path
