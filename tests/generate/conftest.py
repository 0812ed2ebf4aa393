"""A small model with its processor."""

import types

import pytest

import multipatch_jax as mp
from tests.helpers.models import TINY_SMOLVLM, make_model
from tests.helpers.tokenizer import save_tokenizer


@pytest.fixture(scope="session")
def talker(tmp_path_factory) -> types.SimpleNamespace:
    """The folder of a small model that generates text, its config, all of its params, and its processor."""
    folder = make_model(TINY_SMOLVLM, tmp_path_factory.mktemp("talker")).folder
    save_tokenizer(folder)
    config, params = mp.from_pretrained(folder, parts=mp.params.PARTS)
    return types.SimpleNamespace(
        folder=folder, config=config, params=params, processor=mp.Processor.from_pretrained(folder)
    )
