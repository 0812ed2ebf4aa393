"""The guard that raises when XLA compiles a program."""

import jax
import numpy as np
import pytest

import multipatch_jax as mp


def test_the_guard_names_what_was_compiled():
    def a_new_function(x):
        return x + 1

    with pytest.raises(mp.encode.RecompileError, match=r"XLA compiled 1: jit\(a_new_function\)\. Call warmup first"):
        with mp.encode.forbid_compilations():
            jax.jit(a_new_function)(np.zeros(3))
    with mp.encode.count_compilations() as names:
        jax.jit(a_new_function)(np.zeros(3))
        jax.jit(a_new_function)(np.zeros(4))
    assert len(names) <= 2
