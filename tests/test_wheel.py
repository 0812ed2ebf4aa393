"""What a wheel and a source distribution hold, without compiling anything."""

import subprocess
import sys
import tarfile

import pytest

from tests.helpers.project import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder: `lib` holds what a wheel has but for the compiled code, and beside it lies the source distribution."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("built")
    command = f"setup.py -q egg_info --egg-base {folder} build_py --build-lib {folder}/lib sdist --dist-dir {folder}"
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_wheel_holds_the_package_and_nothing_else(built):
    lib = built / "lib"
    found = {str(path.relative_to(lib)) for path in lib.rglob("*") if path.is_file()}
    package = [*(ROOT / "multipatch_jax").rglob("*"), *(ROOT / "multipatch_reference").glob("*")]
    files = {path for path in package if path.is_file() and path.suffix not in (".pyc", ".so")}
    assert found == {str(path.relative_to(ROOT)) for path in files}
    assert "multipatch_jax/py.typed" in found
    assert "multipatch_jax/models/reader/model.safetensors" in found


def test_a_source_distribution_can_be_compiled(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "native").glob("*")} <= names
    assert {"setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md"} <= names
    assert "multipatch_jax/models/reader/page.png" in names
    assert not any(name.startswith("tests") or name.endswith((".so", ".pyc")) for name in names)
