"""The commands in `convert/`."""

import importlib.util
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import multipatch_jax as mp
from tests.helpers.checkpoints import ALL, assert_same_files, assert_same_params
from tests.helpers.processes import run_python
from tests.helpers.project import ROOT

verify = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="verify.py needs torch, the reference's")


def test_flax_to_hf_command(tiny, tmp_path):
    config, params = mp.from_pretrained(tiny.folder, parts=ALL)
    mp.save_pretrained(tmp_path / "saved", config, params)
    command = (ROOT / "convert" / "flax_to_hf.py", tmp_path / "saved", tmp_path / "hf")
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    assert_same_files(tiny.folder, tmp_path / "hf")
    done = run_python(*command)
    assert done.returncode == 2
    assert "hf exists; delete it or choose another name" in done.stderr


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a command of `convert/` in this process; returns (exit status, standard output, standard error)."""

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "convert" / name), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def test_flax_to_hf_in_another_dtype_with_the_language_model_of_a_base(script, tiny, tmp_path):
    assert script("hf_to_flax.py", tiny.folder, tmp_path / "saved")[0] == 0
    status, _, err = script(
        "flax_to_hf.py", tmp_path / "saved", tmp_path / "hf", "--base", tiny.folder, "--dtype", "bfloat16"
    )
    assert (status, err) == (0, "")
    ours, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", tiny.folder))
    assert ours.keys() == original.keys()
    for name, array in ours.items():
        assert array.dtype == jnp.bfloat16
        assert (array == original[name].astype(jnp.bfloat16)).all(), name


def test_a_head_of_ones_own_is_left_out_and_named(script, tiny, tmp_path):
    mp.save_pretrained(tmp_path / "ours", tiny.config, tiny.params | {"head": {"kernel": np.ones((2, 3), np.float32)}})
    status, _, err = script("flax_to_hf.py", tmp_path / "ours", tmp_path / "hf")
    assert status == 0
    assert "left out, for which Hugging Face's layout has no place: head" in err
    assert_same_params(mp.from_pretrained(tmp_path / "hf")[1], tiny.params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flax_to_hf.py", "nowhere", "here"], "here exists; delete it or choose another name"),
        (["flax_to_hf.py", "nowhere", "x" * 300], "destination cannot be written (File name too long)"),
        (["flax_to_hf.py", "nowhere", "there"], "nowhere has no multipatch_config.json"),
        (["flax_to_hf.py", "here", "there", "--revision", "main"], "here has no multipatch_config.json"),
        (["hf_to_flax.py", "nowhere", "here"], "here exists; delete it or choose another name"),
        (["hf_to_flax.py", "here", "there", "--revision", "main"], "--revision is for a hub id, and here is a folder"),
        pytest.param(
            ["verify.py", "here", "--revision", "main"],
            "--revision is for a hub id, and here is a folder",
            marks=verify,
        ),
        pytest.param(["verify.py", "SmolVLM-256M-Instruct", "--revision", "main"], "is a preset's name", marks=verify),
        pytest.param(["verify.py", "here", "--image", "none.png"], "none.png", marks=verify),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, message, script, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    status, _, err = script(*arguments)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@verify
@pytest.mark.parametrize("spoil", [False, True])
def test_verify_names_the_first_stage_that_differs(spoil, tiny, photo, tmp_path):
    Image.fromarray(photo[:100, :90]).save(tmp_path / "photo.png")
    code = "import sys, runpy; sys.argv = sys.argv[1:]\n"
    if spoil:  # an eps of 1e-2 in ours alone: the embeddings are right, the first layer is not
        code += (
            "from multipatch_jax.nn import siglip; from flax import linen\n"
            "def norm(config, compute, name, x): return linen.LayerNorm(1e-2, dtype=compute.dtype, name=name)(x)\n"
            "siglip._layer_norm = norm\n"
        )
    code += "runpy.run_path('convert/verify.py', run_name='__main__')"
    done = run_python("-c", code, "verify.py", tiny.folder, "--image", tmp_path / "photo.png", cwd=ROOT)
    assert done.returncode == int(spoil), done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last == ("The first stage that differs is: layer 0." if spoil else "Every stage agrees (limit 0.0001).")
