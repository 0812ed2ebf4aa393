"""Damaged weight files: an error of ours that names the file, never a crash or params of other shapes."""

import json
import warnings

import numpy as np
import pytest

import multipatch_jax as mp


def header_of(file):
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_raw(file, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_wrong_headers_are_refused(folder):
    file = folder / "model.safetensors"
    header, data = header_of(file)
    name = "model.vision_model.post_layernorm.bias"
    start, end = header[name]["data_offsets"]
    for lie in (
        {"shape": [97]},
        {"shape": [10**12, 10**12]},
        {"data_offsets": [start, end + 4]},
        {"data_offsets": [start + 4, end]},
        {"data_offsets": [len(data), len(data) + 384]},
        {"dtype": "F64"},
        {"dtype": "X9"},
    ):
        write_raw(file, header | {name: header[name] | lie}, data)
        with pytest.raises(mp.CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
            mp.from_pretrained(folder)
    twice = json.dumps(header).encode().replace(f'"{name}"'.encode(), f'"{name[:-4]}weight"'.encode())
    write_raw(file, twice, data)
    with pytest.raises(mp.CheckpointError, match=r"model\.safetensors"):
        mp.from_pretrained(folder)
    file.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(mp.CheckpointError, match="is not a whole safetensors file"):
        mp.from_pretrained(folder)


def test_any_damage_is_a_checkpoint_error_or_only_changes_values(folder):
    """Truncations and bit flips all over the file: an error that names the file or a tensor, or whole params."""
    file = folder / "model.safetensors"
    raw, rng = file.read_bytes(), np.random.default_rng(0)
    size = 8 + int.from_bytes(raw[:8], "little")
    refused = 0
    for attempt in range(120):
        damaged = bytearray(raw)
        if attempt % 4 == 0:
            damaged = damaged[: rng.integers(len(raw))]
        else:
            for place in rng.integers(size if attempt % 4 < 3 else len(raw), size=1 + attempt % 3):
                damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        loaded, message = None, ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = mp.from_pretrained(folder)
            except mp.CheckpointError as error:
                message = str(error)
        if loaded is None:
            refused += 1
            assert str(folder) in message
        else:
            config, params = loaded
            mp.params.check_params(params, config)
    assert refused > 60
