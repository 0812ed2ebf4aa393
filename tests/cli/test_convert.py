"""`multipatch-jax convert`."""

import numpy as np
from safetensors import safe_open


def test_convert_then_encode_gives_the_same_tokens(run, tiny, photo_file, tmp_path):
    status, printed, _ = run("convert", tiny.folder, tmp_path / "converted")
    assert status == 0
    for word in ("tensors", "parameters", "dtype", "bytes", "seconds", "float32"):
        assert word in printed
    for name in ("converted", tiny.folder):
        out = tmp_path / f"{hash(name)}.safetensors"
        assert run("encode", photo_file, "--model", tmp_path / name, "--out", out)[0] == 0
    first, second = (safe_open(path, "numpy").get_tensor("tokens_0") for path in tmp_path.glob("*.safetensors"))
    np.testing.assert_array_equal(first, second)
