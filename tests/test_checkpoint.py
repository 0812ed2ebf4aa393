"""Files to params and back: every tensor, bit for bit, or nothing at all."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import multipatch_jax as mp

ALL = ("vision", "connector", "text")


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny.folder, tmp_path / "model"))


def change(folder, edit):
    """Rewrites the folder's tensors after `edit` of their dict."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same(a, b):
    a, b = mp.params.flatten(a), mp.params.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


def test_every_tensor_of_the_file_has_its_place_and_goes_back_bit_equal(tiny):
    config, params = mp.from_pretrained(tiny.folder, parts=ALL)
    ours = dict(mp.params.from_params(config, params))
    theirs = load_file(tiny.folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_params_are_plain_dicts_of_the_modules_own_shapes(tiny):
    assert type(tiny.params) is dict
    assert type(tiny.params["vision_model"]["encoder"]["layers"]) is dict
    shapes = jax.tree.map(jax.numpy.shape, mp.init_params(jax.random.key(0), tiny.config))
    assert jax.tree.map(jax.numpy.shape, tiny.params) == shapes
    assert mp.params.flatten(shapes) == mp.params.param_shapes(tiny.config)


@pytest.mark.parametrize(
    ("name", "vision", "connector"),
    [
        ("SmolVLM-256M-Instruct", 86_433_024, 7_077_888),
        ("SmolVLM-500M-Instruct", 86_433_024, 11_796_480),
        ("SmolVLM-Instruct", 412_987_248, 21_233_664),
        ("Idefics3-8B-Llama3", 412_926_192, 18_874_368),
    ],
)
def test_parameter_totals(name, vision, connector):
    config = mp.PRESETS[name]
    assert mp.params.count_parameters(mp.params.param_shapes(config, ("vision",)).values()) == vision
    assert mp.params.count_parameters(mp.params.param_shapes(config, ("connector",)).values()) == connector


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("SmolVLM-256M-Instruct", 471, 256_484_928),
        ("SmolVLM-500M-Instruct", 489, 507_482_304),
        ("SmolVLM-Instruct", 657, 2_246_272_880),
        ("Idefics3-8B-Llama3", 729, 8_462_086_384),
    ],
)
def test_tensor_counts_with_the_language_model(name, tensors, parameters):
    config = mp.PRESETS[name]
    assert len(mp.params.tensors(config)) == tensors
    assert mp.params.count_parameters(mp.params.param_shapes(config, mp.params.PARTS).values()) == parameters


@pytest.mark.parametrize("parts", [("vision",), ("connector",), ("embeddings",), ALL, "vision"])
def test_only_the_asked_parts_are_loaded(parts, tiny, tmp_path):
    config, params = mp.from_pretrained(tiny.folder, parts=parts)
    expected = mp.params.param_shapes(config, mp.params.check_parts(config, parts))
    assert mp.params.flatten(params).keys() == expected.keys()
    _, whole = mp.from_pretrained(tiny.folder, parts=ALL)
    mp.save_pretrained(tmp_path / "whole", config, whole)
    _, again = mp.from_pretrained(tmp_path / "whole", parts=parts)
    assert_same(again, params)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_dtypes_are_kept_bit_for_bit(dtype, folder, tmp_path):
    change(folder, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
    config, params = mp.from_pretrained(folder, parts=ALL)
    theirs = load_file(folder / "model.safetensors")
    for name, array in mp.params.from_params(config, params):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, theirs[name])
    mp.save_pretrained(tmp_path / "saved", config, params)
    _, again = mp.from_pretrained(tmp_path / "saved", parts=ALL)
    assert_same(again, params)


def test_dtypes_may_be_mixed_between_parameters_but_not_within_one(folder):
    def mix(tensors):
        tensors["model.vision_model.post_layernorm.weight"] = np.float16(
            tensors["model.vision_model.post_layernorm.weight"]
        )

    change(folder, mix)
    _, params = mp.from_pretrained(folder)
    assert params["vision_model"]["post_layernorm"]["scale"].dtype == np.float16
    assert params["vision_model"]["post_layernorm"]["bias"].dtype == np.float32

    name = "model.vision_model.encoder.layers.1.mlp.fc1.bias"
    change(folder, lambda tensors: tensors.update({name: np.float16(tensors[name])}))
    with pytest.raises(mp.CheckpointError, match="fc1/bias: its layers have the dtypes F16, F32; pass dtype="):
        mp.from_pretrained(folder)
    _, params = mp.from_pretrained(folder, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_saved_folder_keeps_config_and_policies(tiny, tmp_path):
    config = dataclasses.replace(
        tiny.config, tiling=dataclasses.replace(tiny.config.tiling, upscale=False, max_tiles=5)
    )
    mp.save_pretrained(tmp_path / "saved", config, tiny.params)
    loaded, params = mp.from_pretrained(tmp_path / "saved")
    assert loaded == config
    assert_same(params, tiny.params)
    _, half = mp.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    assert_same(half, jax.tree.map(lambda x: x.astype("bfloat16"), tiny.params))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_check_of_one_part_lets_the_others_be(tiny):
    config, params = mp.from_pretrained(tiny.folder, parts=ALL)
    for part in mp.params.PARTS:
        mp.params.check_params(params, config, (part,))
    params["text_model"]["stranger"] = params["text_model"].pop("embed_tokens")
    with pytest.raises(ValueError, match=r" - text_model/embed_tokens/embedding .*\n \+ text_model/stranger/embedding"):
        mp.params.check_params(params, config, ("embeddings",))


def test_save_refuses_what_it_cannot_finish(tiny, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken exists; delete it or choose another name"):
        mp.save_pretrained(tmp_path / "taken", tiny.config, tiny.params)
    with pytest.raises(ValueError, match="not of this config"):
        mp.save_pretrained(tmp_path / "new", mp.presets.SMOLVLM_256M, tiny.params)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_shards_are_read_through_the_index_and_only_where_needed(folder):
    tensors = load_file(folder / "model.safetensors")
    text = {k: v for k, v in tensors.items() if "text_model" in k or "lm_head" in k}
    rest = {k: v for k, v in tensors.items() if k not in text}
    save_file(rest, folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"never opened")
    weight_map = dict.fromkeys(rest, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(text, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    _, params = mp.from_pretrained(folder)
    assert mp.params.flatten(params).keys() == mp.params.param_shapes(mp.from_pretrained(folder)[0]).keys()
    with pytest.raises(mp.CheckpointError, match=r"model-00002-of-00002\.safetensors is not a whole safetensors file"):
        mp.from_pretrained(folder, parts=ALL)
    weight_map["lm_head.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(mp.CheckpointError, match="no safetensors file in its folder"):
        mp.from_pretrained(folder)


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with a folder is told whole, and nothing is loaded.


def test_missing_unexpected_and_misshaped_tensors_are_told_together(folder):
    def spoil(tensors):
        tensors["model.vision_model.post_layernorm.wieght"] = tensors.pop("model.vision_model.post_layernorm.weight")
        tensors["model.vision_model.embeddings.patch_embedding.bias"] = np.zeros(7, np.float32)
        tensors["model.connector.modality_projection.proj.weight"] = np.zeros((48, 1536), np.int32)

    change(folder, spoil)
    with pytest.raises(mp.CheckpointError) as error:
        mp.from_pretrained(folder)
    lines = str(error.value).split("\n")[1:]
    assert lines == [
        " - model.vision_model.post_layernorm.weight (96,)"
        " (found the like-named model.vision_model.post_layernorm.wieght)",
        " + model.vision_model.post_layernorm.wieght () (nearest known: model.vision_model.post_layernorm.weight)",
        " ~ model.vision_model.embeddings.patch_embedding.bias: expected (96,), found (7,)",
        " ~ model.connector.modality_projection.proj.weight: expected dtype F32, BF16, F16, found I32",
    ]


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no weights: expected model.safetensors"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "neither multipatch_config.json nor config.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), FileNotFoundError, "has no preprocessor_config.json"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json is not valid JSON"),
        (lambda f: edit_json(f / "config.json", surprise=1), ValueError, "may change the result: surprise"),
        (lambda f: edit_json(f / "config.json", model_type="llava"), ValueError, "got 'llava'"),
        (lambda f: edit_json(f / "config.json", scale_factor=2), ValueError, r"proj.weight: expected \(48, 384\)"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), ValueError, "is not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ValueError, "only pickled weights"),
    ],
)
def test_a_broken_folder_is_refused(spoil, error, message, folder):
    spoil(folder)
    with pytest.raises(error, match=message):
        mp.from_pretrained(folder)


def test_a_broken_folder_of_ours_is_refused(tiny, tmp_path):
    saved = tmp_path / "saved"
    mp.save_pretrained(saved, tiny.config, tiny.params)
    with pytest.raises(mp.CheckpointError, match=r" - text_model/embed_tokens/embedding \(200, 48\)"):
        mp.from_pretrained(saved, parts="embeddings")
    shutil.rmtree(saved / "params")
    with pytest.raises(mp.CheckpointError, match="not a checkpoint that Orbax can read"):
        mp.from_pretrained(saved)


@pytest.mark.parametrize(("parts", "message"), [((), "must name some of"), (("audio",), r"got \('audio',\)")])
def test_parts_that_do_not_exist_are_refused(parts, message, tiny):
    with pytest.raises(ValueError, match=message):
        mp.from_pretrained(tiny.folder, parts=parts)


def test_a_dtype_that_is_no_float_is_refused(tiny):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16 or None, got int8"):
        mp.from_pretrained(tiny.folder, dtype="int8")


# ---------------------------------------------------------------------------------------------------------------------
# The hub, by huggingface_hub's own client against a server on this machine.


class Hub(SimpleHTTPRequestHandler):
    """Enough of the hub: /owner/name/resolve/REVISION/FILE, with the headers that the client asks for."""

    def send_head(self):
        parts = self.path.strip("/").split("/")
        file = Path(self.directory, *parts[:2], parts[-1])
        self.server.asked.append((self.command, parts[-1]))
        body = file.read_bytes() if file.is_file() else b""
        self.send_response(200 if body else 404)
        if not body:
            self.send_header("X-Error-Code", "EntryNotFound" if file.parent.is_dir() else "RepoNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)

    def log_message(self, *args):
        pass


def load_from_hub(endpoint, cache, repo, parts="('vision', 'connector')"):
    code = (
        "import multipatch_jax as mp\n"
        f"config, params = mp.from_pretrained({repo!r}, parts={parts})\n"
        "print(sorted(mp.params.flatten(params))[0], config.tiling.tile_size)"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_hub_id_downloads_what_is_needed_and_no_more(tiny, tmp_path):
    repo = tmp_path / "owner" / "name"
    shutil.copytree(tiny.folder, repo)
    tensors = load_file(repo / "model.safetensors")
    text = {k: v for k, v in tensors.items() if "text_model" in k or "lm_head" in k}
    save_file({k: v for k, v in tensors.items() if k not in text}, repo / "model-00001-of-00002.safetensors")
    save_file(text, repo / "model-00002-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 + (name in text)}-of-00002.safetensors" for name in tensors}
    (repo / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (repo / "model.safetensors").unlink()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Hub(*args, directory=str(tmp_path)))
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        done = load_from_hub(endpoint, tmp_path / "cache", "owner/name")
        assert done.stdout.split() == ["connector/modality_projection/proj/kernel", "64"], done.stderr
        fetched = {file for command, file in server.asked if command == "GET"}
        assert "model-00001-of-00002.safetensors" in fetched
        assert "model-00002-of-00002.safetensors" not in fetched
        missing = load_from_hub(endpoint, tmp_path / "cache", "owner/other")
        assert "FileNotFoundError: There is no folder owner/other, and the hub did not give it" in missing.stderr
        assert "pass the path of a downloaded folder" in missing.stderr
    finally:
        server.shutdown()
        server.server_close()


def test_a_name_that_can_be_neither_folder_nor_id_asks_no_hub():
    with pytest.raises(FileNotFoundError, match="There is no folder /no/such/place, and it is not a hub id"):
        mp.from_pretrained("/no/such/place")


# ---------------------------------------------------------------------------------------------------------------------
# Damage.


def header_of(file):
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_raw(file, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_headers_that_lie_are_refused(folder):
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


def test_any_damage_is_an_error_of_ours_or_only_changes_values(folder):
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
        message = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                config, params = mp.from_pretrained(folder)
            except mp.CheckpointError as error:
                message = str(error)
        if message is None:
            mp.params.check_params(params, config)
        else:
            refused += 1
            assert str(folder) in message
    assert refused > 60


def test_nan_is_a_warning_that_names_the_tensor(folder):
    name = "model.vision_model.encoder.layers.1.mlp.fc2.weight"

    def spoil(tensors):
        tensors[name][3, 5] = np.nan

    change(folder, spoil)
    with pytest.warns(UserWarning, match=rf"model\.safetensors: {name} holds NaN"):
        mp.from_pretrained(folder)


KILLED = """
import os, signal, sys, threading, time
import multipatch_jax as mp
from pathlib import Path
config, params = mp.from_pretrained(sys.argv[1])
target = Path(sys.argv[2])
def kill():
    while not list(target.parent.glob(f".{target.name}.*/params*")):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
for attempt in range(1000):
    mp.save_pretrained(f"{target}" if not attempt else f"{target}{attempt}", config, params)
    if not attempt: print("saved", flush=True)
"""


def test_a_kill_in_the_middle_of_a_save_leaves_no_half_model(tiny, tmp_path):
    old = tmp_path / "old"
    mp.save_pretrained(old, tiny.config, tiny.params)
    done = subprocess.run([sys.executable, "-c", KILLED, tiny.folder, tmp_path / "new"], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    visible = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    for path in visible:  # whatever has its final name is whole
        assert_same(mp.from_pretrained(path)[1], tiny.params)
    assert old in visible
    assert list(tmp_path.glob(".new.*"))  # what was being written still has its temporary name


def test_a_full_disk_leaves_nothing(tiny, tmp_path, monkeypatch):
    """The write of the config, the last one, fails as on a full disk."""

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for save in (mp.save_pretrained, mp.export_hf):
        with pytest.raises(OSError, match="No space left on device"):
            save(tmp_path / "new", tiny.config, tiny.params)
    assert list(tmp_path.iterdir()) == []
