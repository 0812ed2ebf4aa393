"""The hub, by huggingface_hub's own client against a server on this machine."""

import io
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import multipatch_jax as mp
from tests.helpers.processes import run_python


class Hub(SimpleHTTPRequestHandler):
    """Enough of the hub: /owner/name/resolve/REVISION/FILE, with the headers that the client asks for.

    Notes (command, file) of every request in `asked`, and (file, revision, token) in `sent`.
    """

    def __init__(
        self, *args: Any, asked: list[tuple[str, str]], sent: list[tuple[str, str, str]] | None = None, **options: Any
    ):
        self.asked, self.sent = asked, [] if sent is None else sent
        super().__init__(*args, **options)

    def send_head(self):
        parts = self.path.strip("/").split("/")
        file = Path(self.directory, *parts[:2], parts[-1])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.asked.append((self.command, parts[-1]))
        if "resolve" in parts:  # the client also asks for other pages
            self.sent.append((parts[-1], parts[-2], token))
        body = file.read_bytes() if file.is_file() else b""
        self.send_response(200 if body else 404)
        if not body:
            self.send_header("X-Error-Code", "EntryNotFound" if file.parent.is_dir() else "RepoNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def load_from_hub(endpoint, cache, repo, **options):
    code = (
        "import multipatch_jax as mp\n"
        f"config, params = mp.from_pretrained({repo!r}, **{options})\n"
        "print(sorted(mp.params.flatten(params))[0], config.tiling.tile_size)"
    )
    return run_python("-c", code, changes={"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"})


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
    asked, sent = [], []
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Hub(*args, asked=asked, sent=sent, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        done = load_from_hub(endpoint, tmp_path / "cache", "owner/name")
        assert done.stdout.split() == ["connector/modality_projection/proj/kernel", "64"], done.stderr
        fetched = {file for command, file in asked if command == "GET"}
        assert "model-00001-of-00002.safetensors" in fetched
        assert "model-00002-of-00002.safetensors" not in fetched
        assert {revision for file, revision, _ in sent if file == "config.json"} == {"main"}
        assert {revision for file, revision, _ in sent if file != "config.json"} == {"0" * 40}  # all of one commit
        sent.clear()
        done = load_from_hub(endpoint, tmp_path / "other", "owner/name", revision="v2", token="hf_secret")
        assert done.returncode == 0, done.stderr
        assert {token for *_, token in sent} == {"hf_secret"}
        assert {revision for file, revision, _ in sent if file == "config.json"} == {"v2"}
        missing = load_from_hub(endpoint, tmp_path / "cache", "owner/other")
        assert "FileNotFoundError: There is no folder owner/other, and the hub did not give it" in missing.stderr
        assert "(Repository Not Found for url: " in missing.stderr
        assert "pass the path of a downloaded folder" in missing.stderr
    finally:
        server.shutdown()
        server.server_close()


def test_a_name_that_can_be_neither_folder_nor_id_asks_no_hub():
    with pytest.raises(FileNotFoundError, match="There is no folder /no/such/place, and it is not a hub id"):
        mp.from_pretrained("/no/such/place")
