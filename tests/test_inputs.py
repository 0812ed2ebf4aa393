"""docs/inputs.md says what the tests try."""

import pytest

from tests.helpers.processes import python_output
from tests.helpers.project import ROOT


def test_the_page_of_inputs_is_that_of_the_tests():
    pytest.importorskip("transformers", reason="the lists stand in tests that compare with the reference")
    page = (ROOT / "docs/inputs.md").read_text(encoding="utf-8")
    assert page == python_output("-m", "tests.helpers.inputs"), "run python -m tests.helpers.inputs > docs/inputs.md"
