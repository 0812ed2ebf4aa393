"""JSON files of any content: one error of ours that names the file and the key, or a model that fits its config."""

import copy
import json
import math
import shutil
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from multipatch_jax.checkpoint import config_from_hf, config_to_hf
from multipatch_jax.checkpoint.hf_keys import KEYS
from multipatch_jax.files import read_json
from tests.helpers.models import TINY

FILES = ("config.json", "preprocessor_config.json")
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("file", [*FILES, INDEX])
@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"null", b"5", b'"text"', b"true", b"NaN", b"", b"{", b'{"a": 1} 2', b"\xff\xfe{}", b"\x80"),
        pytest.param(b"[" * 100_000, id="deep list"),
        pytest.param(b'{"a":' * 100_000, id="deep object"),
        pytest.param(b'{"image_token_id": ' + b"9" * 5000 + b"}", id="5000 digits"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused_by_its_name(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{folder / file} (is not valid JSON: |must hold a JSON object, got )"):
        mp.from_pretrained(folder)


def test_a_json_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(10**12)  # a file with a hole, which takes no space
    with pytest.raises(ValueError, match=r"config\.json has 1000000000000 bytes; a JSON file may have at most"):
        read_json(tmp_path / "config.json")


def places():
    """Every key that is read or fixed: (section, key)."""
    return [(section, key) for section, keys in KEYS.items() for key in (*keys.read, *keys.fixed)]


# Of a kind that no key has, or that only some keys have.
VALUES = [0, -1, -7.5, 1.5, 10**30, 1e308, math.nan, math.inf, "64", "", [], [1], [[]], {}, {"a": 1}, True, False]


@pytest.mark.parametrize(("section", "key"), places())
def test_a_value_of_another_kind_is_refused_by_file_and_key(section, key):
    """What is accepted for a key is a config all the same: no value leads to another kind of error."""
    name, _, part = section.partition(": ")
    accepted, errors = 0, []
    for value in VALUES:
        config, preprocessor = copy.deepcopy(config_to_hf(TINY))
        raw = preprocessor if name == FILES[1] else config[part] if part else config
        raw[key] = value
        try:
            config_from_hf(config, preprocessor)
            accepted += 1
        except ValueError as error:
            errors.append(str(error))
    assert accepted <= 5
    for error in errors:
        assert name in error
        assert key in error or "patches" in error
        assert len(error) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def changed(draw, content):
    """A JSON object in which one to three values, anywhere, are replaced, removed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        node = content
        while True:
            key = draw(st.sampled_from(sorted(node)) if node else st.text(max_size=5))
            if isinstance(node.get(key), dict) and draw(st.booleans()):
                node = node[key]
                continue
            break
        kind = draw(st.sampled_from(["replace", "number", "remove", "add"]))
        if kind == "remove":
            node.pop(key, None)
        elif kind == "add":
            node[draw(st.text(max_size=8))] = draw(JSON)
        else:
            node[key] = draw(JSON if kind == "replace" else st.integers(-2, 2**33))
    return content


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A folder that each example writes anew, and the content of its files."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(tiny.folder, folder)
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    contents = {name: json.loads((folder / name).read_text()) for name in FILES}
    contents["model.safetensors"] = json.loads(raw[8 : 8 + size])
    contents[INDEX] = {"metadata": {}, "weight_map": dict.fromkeys(contents["model.safetensors"], "model.safetensors")}
    del contents[INDEX]["weight_map"]["__metadata__"]
    return folder, contents, raw[8 + size :]


def put(folder, name, content, data):
    text = json.dumps(content).encode()
    if name == "model.safetensors":
        text = len(text).to_bytes(8, "little") + text + data
    (folder / name).write_bytes(text)


@pytest.mark.parametrize("name", [*FILES, "model.safetensors", INDEX])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_change_of_a_file_loads_or_is_an_error_of_ours(name, model, data):
    folder, contents, numbers = model
    put(folder, name, data.draw(changed(contents[name])), numbers)
    message = f"{folder}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # moved numbers may be NaN
            config, params = mp.from_pretrained(folder, parts=("vision", "connector", "text"))
        mp.params.check_params(params, config, mp.params.PARTS)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    finally:
        (folder / INDEX).unlink(missing_ok=True)
        if name != INDEX:
            put(folder, name, contents[name], numbers)
    assert str(folder) in message
    assert len(message) < 20_000
