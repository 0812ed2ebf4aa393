"""Which ids end an answer: where a checkpoint says so, and what is wrong in its files."""

import json
import re
from typing import Any

import pytest

from multipatch_jax.generate.eos import read_eos_ids
from multipatch_jax.text import Processor
from tests.helpers.tokenizer import save_tokenizer


@pytest.fixture
def processor(tmp_path) -> Processor:
    save_tokenizer(tmp_path)
    return Processor.from_pretrained(tmp_path)


def write(folder, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_first_file_that_names_any_decides(tmp_path, processor):
    assert read_eos_ids(tmp_path, processor) == (2,)  # the tokenizer's own
    write(tmp_path, "config.json", {"text_config": {"eos_token_id": 7}})
    assert read_eos_ids(tmp_path, processor) == (7,)
    write(tmp_path, "config.json", {"eos_token_id": [0], "text_config": {"eos_token_id": 7}})
    assert read_eos_ids(tmp_path, processor) == (0,)
    write(tmp_path, "generation_config.json", {"bos_token_id": 1})
    assert read_eos_ids(tmp_path, processor) == (0,)
    write(tmp_path, "generation_config.json", {"eos_token_id": [49279, 2, 49279]})
    assert read_eos_ids(tmp_path, processor) == (49279, 2)
    write(tmp_path, "generation_config.json", {"eos_token_id": 49279})
    assert read_eos_ids(tmp_path, processor) == (49279,)


def test_a_checkpoint_that_names_none_has_none(tmp_path, processor):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    write(tmp_path, "config.json", {"eos_token_id": None, "text_config": None})
    assert read_eos_ids(tmp_path, Processor.from_pretrained(tmp_path)) == ()
    write(tmp_path, "tokenizer_config.json", {"eos_token": "not in the vocabulary"})
    assert read_eos_ids(tmp_path, Processor.from_pretrained(tmp_path)) == ()


@pytest.mark.parametrize("found", [-1, "2", 2.0, True, [2, None], [[2]], {"id": 2}, 2**31])
def test_something_else_than_ids_is_refused(tmp_path, processor, found):
    write(tmp_path, "generation_config.json", {"eos_token_id": found})
    message = f"{tmp_path / 'generation_config.json'}: eos_token_id must be an id from 0, or a list of them, got "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_eos_ids(tmp_path, processor)


@pytest.mark.parametrize("content", ["{", "[2]", "\xff"])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_damaged_file_is_named(tmp_path, processor, name, content):
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        read_eos_ids(tmp_path, processor)


def test_a_text_config_that_is_no_object_is_named(tmp_path, processor):
    write(tmp_path, "config.json", {"text_config": [1]})
    with pytest.raises(ValueError, match=r"config\.json: text_config must be an object, got \[1\]"):
        read_eos_ids(tmp_path, processor)
