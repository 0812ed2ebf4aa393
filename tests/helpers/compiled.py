"""Where the tests of compiled code run."""

import jax
import pytest

from multipatch_jax.nn import native

compiled_code = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not native.builds(),
    reason="compiled code is for CPUs, and is built where the install finds a C++ compiler",
)
