"""`multipatch-jax export`."""

import jax.numpy as jnp
import numpy as np

import multipatch_jax as mp


def test_export(run, tiny, tmp_path):
    out = tmp_path / "out"
    command = ["export", "--platform", "tpu", "--platform", "cpu", out, "--model", tiny.folder]
    status, text, _ = run(*command)
    assert status == 0
    assert "cpu.jax_export   uint8[n,64,64,3] -> float32[n,4,48], attention blocked" in text
    assert "tpu.jax_export   uint8[8*n,64,64,3] -> float32[8*n,4,48], attention pallas_tpu" in text
    assert mp.load_exported(out)(np.zeros((2, 64, 64, 3), np.uint8)).dtype == jnp.float32
    status, _, err = run(*command)
    assert status == 2
    assert "exists; delete it or choose another name" in err
