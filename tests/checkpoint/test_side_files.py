"""Tokenizer, templates and settings travel with a saved and with an exported model; links out of a folder do not."""

import json
import os
import shutil
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.checkpoint import find_folder
from multipatch_jax.checkpoint.side_files import SIDE_FILES
from tests.checkpoint.test_hub import Hub
from tests.helpers.models import TINY_SMOLVLM, make_model
from tests.helpers.processes import run_python
from tests.helpers.text import reference_processor
from tests.helpers.tokenizer import cached_tokenizer

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model's folder as transformers writes it, processor and all."""
    pytest.importorskip("transformers", reason="the reference's processor writes the folder")
    folder = tmp_path_factory.mktemp("base") / "base"
    model = make_model(TINY_SMOLVLM, folder)
    reference_processor(cached_tokenizer(), model.config)[0].save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7}')
    return folder


def same_processor(first, second):
    config, image = TINY_SMOLVLM, np.zeros((100, 150, 3), np.uint8)
    one, two = (mp.Processor.from_pretrained(folder)([CHAT], [image], config=config) for folder in (first, second))
    np.testing.assert_array_equal(one.input_ids, two.input_ids)


def test_a_processor_is_read_from_a_saved_folder_and_travels_on(base, tmp_path):
    config, params = mp.from_pretrained(base)
    mp.save_pretrained(tmp_path / "saved", config, params, base=base)
    same_processor(base, tmp_path / "saved")
    mp.save_pretrained(tmp_path / "again", config, params, base=tmp_path / "saved")
    same_processor(base, tmp_path / "again")
    mp.export_hf(tmp_path / "hf", config, params, base=tmp_path / "again")
    same_processor(base, tmp_path / "hf")
    for folder in ("saved", "again", "hf"):
        assert json.loads((tmp_path / folder / "generation_config.json").read_text()) == {"max_new_tokens": 7}
    assert mp.from_pretrained(tmp_path / "hf")[0] == config
    assert not {"config.json", "model.safetensors"} & {path.name for path in (tmp_path / "saved").iterdir()}


def test_a_base_that_is_no_folder_is_refused_and_leaves_nothing(tiny, tmp_path):
    for save in (mp.save_pretrained, mp.export_hf):
        with pytest.raises(FileNotFoundError, match=r"base must be a model's folder on this machine, got .*none"):
            save(tmp_path / "new", tiny.config, tiny.params, base=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def as_snapshot(folder, root):
    """The folder as it lies in a hub's cache: files in blobs, and links to them."""
    snapshot = root / "models--owner--name" / "snapshots" / COMMIT
    blobs = root / "models--owner--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        os.symlink(Path("../../blobs") / str(number), snapshot / file.name)
    return snapshot


def test_the_links_of_a_snapshot_are_copied_as_files(base, tmp_path):
    config, params = mp.from_pretrained(base)
    snapshot = as_snapshot(base, tmp_path / "hub")
    mp.save_pretrained(tmp_path / "saved", config, params, base=snapshot)
    mp.export_hf(tmp_path / "hf", config, params, base=snapshot)
    for folder in ("saved", "hf"):
        same_processor(base, tmp_path / folder)
        assert not any(path.is_symlink() for path in (tmp_path / folder).rglob("*"))


def test_links_that_lead_out_are_not_followed(base, tmp_path):
    config, params = mp.from_pretrained(base)
    secret = tmp_path / "secret"
    secret.write_text('{"secret": 1}')
    for name, folder in (("plain", base), ("snapshot", as_snapshot(base, tmp_path / "hub"))):
        spoiled = folder if name == "snapshot" else Path(shutil.copytree(folder, tmp_path / name))
        for file in ("vocab.json", "preprocessor_config.json"):
            (spoiled / file).unlink(missing_ok=True)
            (spoiled / file).symlink_to(secret)
        (spoiled / "notes.txt").symlink_to(spoiled / "tokenizer_config.json")  # within: copied
        for save in (mp.save_pretrained, mp.export_hf):
            new = tmp_path / f"{name}-{save.__name__}"
            with pytest.warns(UserWarning, match="is a link to a place outside its folder") as caught:
                save(new, config, params, base=spoiled)
            assert len(caught) == 2
            assert not any("secret" in path.read_text("latin-1") for path in new.iterdir() if path.is_file())
        assert (new / "notes.txt").is_file()


FIND = """
from multipatch_jax.checkpoint import find_folder
import multipatch_jax as mp
print(find_folder("owner/name"))
mp.from_pretrained("owner/name", revision="0" * 40)
"""


def test_a_hub_id_is_found_with_its_side_files(base, tmp_path):
    """The second time the cache knows what the hub has and lacks. Loading alone needs no tokenizer."""
    shutil.copytree(base, tmp_path / "owner" / "name")
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Hub(*args, asked=asked, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    changes = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
    changes |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    try:
        done = run_python("-c", FIND, changes=changes)
        assert done.returncode == 0, done.stderr
        same_processor(base, done.stdout.strip())
        assert "tokenizer.json" in {request[1] for request in asked}
        asked.clear()
        assert run_python("-c", FIND, changes=changes).returncode == 0
        assert not {request[1] for request in asked} & set(SIDE_FILES)
    finally:
        server.shutdown()
        server.server_close()


def test_a_folder_is_found_as_it_is(base):
    assert find_folder(base) == base
    assert find_folder(str(base), ("text",)) == base
    with pytest.raises(ValueError, match="name_or_path must be a model's folder or its hub id, got None"):
        find_folder(None)  # type: ignore
