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


def test_a_bar_counts_the_programs_of_warmup(tiny, capsys):
    mp.warmup(tiny.params, config=tiny.config, tile_on="host")
    assert capsys.readouterr().err == ""
    mp.warmup(tiny.params, config=tiny.config, tile_on="host", progress=True)
    shown = capsys.readouterr().err
    assert "compiling: " in shown
    assert "/4 [" in shown


def test_a_program_that_does_not_compile_is_an_error():
    class Broken:
        def compile(self):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        mp.encode.compile_all([jax.jit(lambda x: x).lower(1.0), Broken()])  # pyright: ignore[reportArgumentType]
