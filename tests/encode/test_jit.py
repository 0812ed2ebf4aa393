"""Programs: which options they are compiled with, and what they say of a device without memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_jax.encode import prepare_execution
from multipatch_jax.encode.jit import Program
from multipatch_jax.nn import KERNELS


@pytest.fixture
def execution(tiny):
    return prepare_execution(tiny.params, tiny.config, batch_size=3)[1]


def with_options(execution, monkeypatch):
    """An execution whose program XLA refuses, as it does not know the option; so compiling with it is seen."""
    plain = dataclasses.replace(KERNELS["plain"], compiler_options=(("no_such_option", True),))
    monkeypatch.setitem(KERNELS, "plain", plain)
    return dataclasses.replace(execution, compute=dataclasses.replace(execution.compute, attention="plain"))


def test_rows_that_cublas_would_pad_are_left_to_xla(execution, monkeypatch):
    tuned = with_options(execution, monkeypatch)
    vision = dataclasses.replace(tuned.config.vision, patch_size=14, image_size=378)
    tiling = dataclasses.replace(tuned.config.tiling, tile_size=378, tokens_per_tile=81)
    connector = dataclasses.replace(tuned.config.connector, scale_factor=3)
    config = dataclasses.replace(tuned.config, vision=vision, tiling=tiling, connector=connector)  # 729 patches
    assert Program(double)(np.float32(3), execution=dataclasses.replace(tuned, config=config)) == 6


def double(x, *, execution):
    return 2 * x


def test_a_program_is_compiled_with_the_options_of_its_kernel(execution, monkeypatch):
    program = Program(double)
    assert program(np.float32(3), execution=execution) == 6
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        program(np.float32(3), execution=with_options(execution, monkeypatch))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: jax.jit(lambda x: jax.lax.map(f, x[None])[0])])
def test_inside_the_users_program_there_are_no_options(transform, execution, monkeypatch):
    program, tuned = Program(double), with_options(execution, monkeypatch)
    assert float(transform(lambda x: program(x, execution=tuned))(jnp.float32(3))) in (2, 6)


def test_arrays_that_the_users_program_closes_over_are_inside_it(execution, monkeypatch):
    program, tuned = Program(double), with_options(execution, monkeypatch)
    assert float(jax.jit(lambda: program(jnp.float32(3), execution=tuned))()) == 6


def test_too_little_memory_is_said_with_the_tiles_in_flight(execution):
    def out_of_memory(x, *, execution):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")

    with pytest.raises(MemoryError, match="too little memory for 3 tiles in flight: pass a smaller batch_size"):
        Program(out_of_memory)(np.float32(3), execution=execution)


@pytest.mark.gpu
@pytest.mark.needs_gpu
def test_a_gpu_without_memory_says_so():
    config = mp.presets.SMOLVLM_256M
    params = mp.init_params(jax.random.key(0), config)
    tiles = np.zeros((2048, 512, 512, 3), np.uint8)  # all scores of these at once are 100 GB
    with pytest.raises(MemoryError, match="2048 tiles in flight"):
        mp.encode_tiles(params, tiles, config=config, compute=mp.Compute(attention="plain"), batch_size=2048)
