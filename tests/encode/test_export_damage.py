"""Exports that were changed, damaged or made by hand: an error of ours when they are loaded, and misuse at the door."""

import contextlib
import json
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from multipatch_jax.encode.export_files import digest_of_manifest
from multipatch_jax.files import digest_of_file


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    mp.export_encoder(folder, tiny.config, tiny.params, platforms=["cpu"])
    return folder


@pytest.fixture
def spoiled(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "out"))


def forge(folder, change):
    """Changes the manifest as one who knows how it is signed."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    for name in manifest["sha256"]:
        with contextlib.suppress(OSError, ValueError):
            manifest["sha256"][name] = digest_of_file(folder / name)
    manifest["manifest_sha256"] = digest_of_manifest(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize("file", ["cpu.jax_export", "params.npz"])
def test_two_changed_bytes_are_named(file, spoiled):
    raw = bytearray((spoiled / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    raw[len(raw) // 3] ^= 255
    (spoiled / file).write_bytes(raw)
    with pytest.raises(ValueError, match=f"{file} changed since it was exported"):
        mp.load_exported(spoiled)


@pytest.mark.parametrize("file", ["cpu.jax_export", "params.npz"])
def test_a_missing_file_is_named(file, spoiled):
    (spoiled / file).unlink()
    with pytest.raises(ValueError, match=f"{file} is missing"):
        mp.load_exported(spoiled)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", ".", None, 5, "manifest.json\0"])
def test_only_plain_names_are_followed(name, spoiled):
    (spoiled.parent / "x").write_bytes((spoiled / "cpu.jax_export").read_bytes())

    def change(manifest):
        manifest["platforms"]["cpu"]["file"] = name
        manifest["sha256"][str(name)] = manifest["sha256"]["cpu.jax_export"]

    forge(spoiled, change)
    with pytest.raises(ValueError, match=r"manifest\.json .*names a file"):
        mp.load_exported(spoiled)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["platforms"]["cpu"].update(batch_size=3),
        lambda manifest: manifest["config"]["tiling"].update(tile_size=32),
        lambda manifest: manifest["params"].popitem(),
        lambda manifest: manifest.update(multipatch_jax_export=1),
        lambda manifest: manifest.clear(),
        lambda manifest: manifest.update(manifest_sha256=5),
    ],
)
def test_a_changed_manifest_is_refused(change, spoiled):
    file = spoiled / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json"):
        mp.load_exported(spoiled)


@pytest.mark.parametrize("content", ["[]", "null", "{", "\udcff", "9" * 5000])
def test_a_manifest_that_is_no_object_is_refused(content, spoiled):
    (spoiled / "manifest.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        mp.load_exported(spoiled)


def test_a_forged_folder_with_params_of_another_kind_is_refused(spoiled):
    """All digests agree, so the file itself must be looked at."""
    whole = (spoiled / "params.npz").read_bytes()

    def pickled():
        np.savez(spoiled / "params.npz", x=np.array([{}], object))

    def other():
        np.savez(spoiled / "params.npz", x=np.zeros(3))

    def empty_zip():
        zipfile.ZipFile(spoiled / "params.npz", "w").close()

    def text():
        (spoiled / "params.npz").write_text("no zip")

    def cut():
        (spoiled / "params.npz").write_bytes(whole[: len(whole) // 2])

    for spoil in (pickled, other, empty_zip, text, cut):
        spoil()
        forge(spoiled, lambda manifest: None)
        with pytest.raises(ValueError, match=r"params\.npz does not hold the params"):
            mp.load_exported(spoiled)


def test_a_forged_program_that_is_none_is_refused(spoiled):
    (spoiled / "cpu.jax_export").write_bytes(b"")
    forge(spoiled, lambda manifest: None)
    with pytest.raises(ValueError, match=r"cpu\.jax_export is not a program that this version of jax can read"):
        mp.load_exported(spoiled)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_our_error_or_gives_equal_tokens(data, exported, tiny_tiles, tmp_path_factory):
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("damaged") / "out"))
    file = folder / data.draw(st.sampled_from(["manifest.json", "cpu.jax_export", "params.npz"]))
    raw = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "write", "delete"]))
    if kind == "flip":
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del raw[place:]
    else:
        raw[place : place + 3] = data.draw(st.binary(min_size=1, max_size=4))
    file.write_bytes(raw)
    if kind == "delete":
        file.unlink()
    encode = None
    with contextlib.suppress(ValueError, FileNotFoundError):
        encode = mp.load_exported(folder)
    if encode is not None:  # a space of the manifest's changed, or nothing
        np.testing.assert_array_equal(encode(tiny_tiles[:2]), mp.load_exported(exported)(tiny_tiles[:2]))


# ---------------------------------------------------------------------------------------------------------------------
# Misuse.


def test_platforms_may_be_one_name_or_any_iterable(tiny, tmp_path):
    assert mp.export_encoder(tmp_path / "a", tiny.config, tiny.params, platforms="cpu")["platforms"].keys() == {"cpu"}
    generator = (platform for platform in ["tpu", "cpu"])
    manifest = mp.export_encoder(tmp_path / "b", tiny.config, tiny.params, platforms=generator)
    assert list(manifest["platforms"]) == ["tpu", "cpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platforms": None}, "platforms must be some of cpu, cuda, tpu, got None"),
        ({"platforms": 5}, "platforms must be some of cpu, cuda, tpu, got 5"),
        ({"platforms": [["cpu"]]}, "platforms must be some of cpu, cuda, tpu, got .'cpu'."),
        ({"platforms": "gpu"}, "platforms must be some of cpu, cuda, tpu, got gpu"),
        ({"platforms": iter(())}, "platforms must be some of cpu, cuda, tpu, got none"),
        ({"path": None}, "path must be the path of a file or folder, got None"),
        ({"config": None}, "config must be a ModelConfig, got None"),
        ({"params": None}, "params must be a nested dict"),
        ({"params": {}}, "not of this config"),
        ({"compute": None}, "compute must be"),
        ({"batch_size": True}, "batch_size must be a positive number of tiles"),
    ],
)
def test_misuse_is_refused_by_name(options, message, tiny, tmp_path):
    arguments = {"path": tmp_path / "out", "config": tiny.config, "params": tiny.params, "platforms": ["cpu"]} | options
    with pytest.raises(ValueError, match=message):
        mp.export_encoder(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_half_a_tree_is_refused(tiny, tmp_path):
    for part in ("vision_model", "connector"):
        with pytest.raises(ValueError, match="not of this config"):
            mp.export_encoder(tmp_path / "out", tiny.config, {part: tiny.params[part]}, platforms=["cpu"])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny.params)
    with pytest.raises(ValueError, match=r"params must be arrays, got .* of type ShapeDtypeStruct"):
        mp.export_encoder(tmp_path / "out", tiny.config, shapes, platforms=["cpu"])
    assert list(tmp_path.iterdir()) == []


def test_loading_with_wrong_arguments_is_refused(exported):
    with pytest.raises(ValueError, match="path must be the path of a file or folder, got None"):
        mp.load_exported(None)  # type: ignore
    for platform in (5, ["cpu"]):
        with pytest.raises(ValueError, match="platform must be one of cpu, cuda, tpu or None, got"):
            mp.load_exported(exported, platform)  # type: ignore
    encode = mp.load_exported(exported)
    for tiles in (None, 5, [[1]]):
        with pytest.raises(ValueError, match="tiles must be uint8"):
            encode(tiles)  # type: ignore
