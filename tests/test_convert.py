"""The commands in `convert/`."""

import pytest
from PIL import Image

import multipatch_jax as mp
from tests.helpers.checkpoints import ALL, assert_same_files
from tests.helpers.processes import run_python
from tests.helpers.project import ROOT


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


@pytest.mark.parametrize("spoil", [False, True])
def test_verify_names_the_first_stage_that_differs(spoil, tiny, photo, tmp_path):
    Image.fromarray(photo[:100, :90]).save(tmp_path / "photo.png")
    code = "import sys, runpy; sys.argv = sys.argv[1:]\n"
    if spoil:  # an eps of 1e-2 in ours alone: the embeddings are right, the first layer is not
        code += (
            "from multipatch_jax.nn import siglip; from flax import linen\n"
            "siglip._layer_norm = lambda config, compute, name: linen.LayerNorm(1e-2, dtype=compute.dtype, name=name)\n"
        )
    code += "runpy.run_path('convert/verify.py', run_name='__main__')"
    done = run_python("-c", code, "verify.py", tiny.folder, "--image", tmp_path / "photo.png", cwd=ROOT)
    assert done.returncode == int(spoil), done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last == ("The first stage that differs is: layer 0." if spoil else "Every stage agrees (limit 0.0001).")
