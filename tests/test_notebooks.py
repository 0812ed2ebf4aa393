"""Every notebook runs from top to bottom, and the stored file has its pictures and no path of a machine."""

import base64
import io
import re
import sys

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

from tests.helpers.processes import environment
from tests.helpers.project import ROOT

pytest.importorskip("torch", reason="the notebooks compare with the reference")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# An absolute path of any machine (not a fraction, a relative path or an address), or a well-known folder anywhere.
A_MACHINES_PATH = re.compile(r"(?<![\w./])/\w[\w.-]*/|/(home|root|Users|tmp|opt|usr)/|site-packages|file://|[A-Z]:\\")


class ThisPython(AsyncKernelManager):
    """A kernel of the interpreter that runs the tests, whatever kernels the machine has."""

    @property
    def kernel_spec(self):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook):
    found = []
    for output in outputs(notebook):
        for kind in ("image/png", "image/jpeg"):
            if kind in output.get("data", {}):
                found.append(Image.open(io.BytesIO(base64.b64decode(output.data[kind]))))
    return found


def test_the_notebooks_are_these_five():
    assert [path.stem.partition("_")[2] for path in NOTEBOOKS] == [
        "quickstart",
        "parity",
        "many_images",
        "finetune",
        "ask",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_without_a_network(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    stored = len(pictures(notebook))
    client = NotebookClient(
        notebook, timeout=300, kernel_manager_class=ThisPython, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # a cell that fails raises
    assert len(pictures(notebook)) == stored  # as many as are stored
    errors = [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert not re.search(r"Warning|Error", "".join(errors)), errors


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_file_is_fit_to_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_500_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # run once, in order, all of it
    shown = pictures(notebook)
    assert len(shown) >= 3
    for picture in shown:
        assert min(picture.size) > 150
        assert any(low < high for low, high in picture.convert("RGB").getextrema())  # something is drawn
    texts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        assert output.output_type != "error"
        texts += [output.get("text", ""), *(str(v) for k, v in output.get("data", {}).items() if "image" not in k)]
    assert not A_MACHINES_PATH.search("\n".join(texts))


@pytest.mark.parametrize("before", ["see ", "'", "\n", "(", "=", ":"])
def test_a_machines_path_is_seen_and_an_address_is_not(before):
    for folder in ("home", "content", "mnt"):
        assert A_MACHINES_PATH.search(f"{before}/{folder}/x.py")
    assert A_MACHINES_PATH.search(f"{before}D:\\x.py")
    assert not A_MACHINES_PATH.search(f"{before}https://example.org/a/b, images/s/tile, image/png, photos/a.jpg")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_says_what_random_weights_are_worth(path):
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "random weights" in prose
    assert "HuggingFaceTB/SmolVLM-256M-Instruct" in prose  # the line that loads the real weights
