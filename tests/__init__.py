"""The tests: a folder for each room of the package, and what several of them share in `helpers`."""

import pytest

pytest.register_assert_rewrite("tests.helpers")  # so that a failed assert in a helper shows its values
