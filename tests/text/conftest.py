"""The tokenizer, a model with the reference's processor and ours, and photographs."""

from typing import Any

import numpy as np
import pytest
from skimage import data

from tests.helpers.text import TextModel, make_text_model
from tests.helpers.tokenizer import cached_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return cached_tokenizer()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> TextModel:
    pytest.importorskip("transformers", reason="compares with the reference's tokenizer and processor")
    return make_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def photos(photo) -> dict[str, np.ndarray]:
    return {"cat": photo, "rocket": data.rocket()[:, :200], "coffee": data.coffee()}
