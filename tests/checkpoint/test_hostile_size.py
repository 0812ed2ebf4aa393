"""Files that are small or valid, but ask for much: refused in bounded time and memory."""

import json
import re

import pytest

import multipatch_jax as mp
from tests.helpers.processes import start_python

LOAD = """
import resource, sys
import jax, multipatch_jax as mp, safetensors
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    mp.from_pretrained(sys.argv[1], parts=("vision", "connector", "text"))
except ValueError as error:
    print(f"refused in {len(str(error))} letters: {error}"[:5000])
print("MB", peak() - before)
"""


def refused(folder):
    """Loads a folder in a process of its own; returns the error's text, and by how many megabytes the memory grew."""
    process = start_python("-c", LOAD, folder)
    try:
        output = process.communicate(timeout=40)[0]
    finally:
        process.kill()
    found = re.search(r"refused in (\d+) letters: (.*)MB (\d+)", output, re.S)
    assert found, output
    assert int(found.group(1)) < 10_000
    return found.group(2), int(found.group(3))


def write_empty_tensors(file, names):
    """A valid safetensors file of tensors without numbers."""
    entries = ",".join(f'"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for name in names)
    header = f"{{{entries}}}".encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def edit_config(folder, section, **changes):
    config = json.loads((folder / "config.json").read_text())
    config[section] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def test_a_model_of_other_names_is_refused_in_time(folder):
    """Comparing each missing name with each unexpected one took a minute."""
    edit_config(folder, "text_config", num_hidden_layers=30)
    edit_config(folder, "vision_config", num_hidden_layers=12)
    names = [f"module.towers.blocks.{i}.attention_{kind}.weights" for i in range(60) for kind in "abcdefgh"]
    write_empty_tensors(folder / "model.safetensors", names)
    text, _ = refused(folder)
    assert "and 911 more" in text


def test_many_names_in_a_header(folder):
    write_empty_tensors(folder / "model.safetensors", (f"model.text_model.layers.{i}.weight" for i in range(50_000)))
    text, grown = refused(folder)
    assert "does not hold what its config asks for" in text
    assert grown < 200


def write_index(folder, number):
    weight_map = {f"model.vision_model.layers.{i}.{'x' * 20}.weight": "model.safetensors" for i in range(number)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_many_names_in_an_index(folder):
    write_index(folder, 50_000)
    text, grown = refused(folder)
    assert "does not hold what its config asks for" in text
    assert grown < 200


def test_half_a_million_names_are_refused_by_their_size(folder):
    write_empty_tensors(folder / "model.safetensors", (f"model.text_model.layers.{i}.weight" for i in range(500_000)))
    with pytest.raises(mp.CheckpointError, match=r"its header has .* bytes, of at most 32000000"):
        mp.from_pretrained(folder)
    write_index(folder, 500_000)
    with pytest.raises(ValueError, match=r"index\.json has .* bytes; a JSON file may have at most 32000000"):
        mp.from_pretrained(folder)


def test_one_name_of_a_megabyte(folder):
    write_empty_tensors(folder / "model.safetensors", ["model." * 160_000])
    _, grown = refused(folder)
    assert grown < 100


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_a_hundred_million_layers_in_a_few_bytes(folder, section):
    edit_config(folder, section, num_hidden_layers=100_000_000)
    text, grown = refused(folder)
    assert "tensors, but its config asks for" in text
    assert grown < 200


def test_a_hundred_million_layers_of_a_folder_of_ours(tiny, tmp_path):
    saved = tmp_path / "saved"
    mp.save_pretrained(saved, *mp.from_pretrained(tiny.folder, parts="all"))
    for digests in saved.glob("*digest*"):
        digests.unlink()
    config = json.loads((saved / "multipatch_config.json").read_text())
    config["vision"]["num_hidden_layers"] = 100_000_000
    (saved / "multipatch_config.json").write_text(json.dumps(config))
    text, grown = refused(saved)
    assert "expected (100000000, 96)" in text
    assert grown < 300
