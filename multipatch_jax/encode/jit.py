"""Jit a program with XLA's options for it, where it is not traced inside another program."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import Execution, dtype_of
from multipatch_jax.nn import KERNELS, Compute, resolve_compute, rows_suit_cublas
from multipatch_jax.params import Params


@contextlib.contextmanager
def memory_errors(what: str, remedy: str) -> Iterator[None]:
    """Raise a MemoryError that says what was too much, and what to do, if the block finds too little memory."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"The device has too little memory for {what}: {remedy}.") from error


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function of params, arrays and a static `Execution`.

    It is compiled with the options that the execution's attention kernel asks for. JAX takes such options for a whole
    program only: traced inside the user's own `jit` or `grad`, the function is part of a program with the user's.

    Attributes:
      function: (params, arrays, *, execution) -> arrays.
      static: names of its other static arguments.
      donated: names of its donated arguments.
    """

    function: Callable[..., Any]
    static: tuple[str, ...] = ()
    donated: tuple[str, ...] = ()

    def __call__(self, *arguments: Any, execution: Execution, **named: Any) -> Any:
        """Run the program.

        Raises:
          MemoryError: the device has too little memory for so many tiles in flight.
        """
        remedy = "pass a smaller batch_size, or load the params in a dtype of 16 bits"
        with memory_errors(f"{execution.batch_size} tiles in flight", remedy):
            return self._jitted(execution, arguments)(*arguments, execution=execution, **named)

    def lower(self, *arguments: Any, execution: Execution, **named: Any) -> jax.stages.Lowered:
        """As `jax.jit(function).lower`."""
        return self._jitted(execution).lower(*arguments, execution=execution, **named)

    def _jitted(self, execution: Execution, arguments: tuple[Any, ...] = ()) -> Any:
        config = execution.config
        options = compiler_options(execution.compute.attention, config.tiling.tile_size, config.vision.patch_size)
        return _jit(self, _unless_traced(options, arguments))


@functools.cache
def _jit(program: Program, options: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(
        program.function,
        static_argnames=("execution", *program.static),
        donate_argnames=program.donated,
        compiler_options=dict(options) or None,
    )


def compiler_options(attention: str, tile_size: int, patch_size: int) -> dict[str, str | bool]:
    """Return XLA's options for a program.

    Args:
      attention: a name in `nn.KERNELS`; a kernel of another version, in an export, has none.
      tile_size, patch_size: of the model, in pixels.
    """
    has_options = attention in KERNELS and rows_suit_cublas((tile_size // patch_size) ** 2)
    return dict(KERNELS[attention].compiler_options) if has_options else {}


def options_for(params: Params, config: ModelConfig, compute: Compute) -> tuple[tuple[str, str | bool], ...]:
    """Return XLA's options for a program of the caller's that encodes with these params, as (name, value).

    There are none where the caller's program is part of another, and none for params without a tower.
    """
    if "vision_model" not in params:
        return ()
    attention = resolve_compute(compute, dtype_of(params)).attention
    return _unless_traced(compiler_options(attention, config.tiling.tile_size, config.vision.patch_size), (params,))


def _unless_traced(options: dict[str, Any], arguments: tuple[Any, ...]) -> tuple[tuple[str, Any], ...]:
    """Return the options, or none in a part of another program; without options it does not look."""
    return () if options and _is_traced(arguments) else tuple(options.items())


def _is_traced(arguments: tuple[Any, ...]) -> bool:
    """Return whether a program with these arguments would be part of another: a `jit` or `grad` is being traced."""
    inside_jit = isinstance(jnp.zeros(()), Tracer)  # even if no argument is traced
    return inside_jit or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments))
