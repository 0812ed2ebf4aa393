"""Counting compilations, and refusing them: a recompile is the slow path that nobody sees."""

import contextlib
import functools
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class RecompileError(RuntimeError):
    """Something was compiled where everything should have been compiled before."""


@functools.cache
def _log() -> list[str]:
    """Names of the programs compiled since the first call, kept by one listener: JAX offers no way to take one away."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT:
            names.append(str(kwargs.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Gives a list that holds, once the block is through, the names of the programs that XLA compiled in it."""
    log, names = _log(), list[str]()
    start = len(log)
    try:
        yield names
    finally:
        names += log[start:]


@contextlib.contextmanager
def forbid_compilations() -> Iterator[None]:
    """Raises a `RecompileError` that names the programs, if XLA compiled any in the block.

    For services, after `warmup`: `with mp.encode.forbid_compilations(): mp.encode_images(...)`.
    """
    with count_compilations() as names:
        yield
    if names:
        raise RecompileError(
            f"Expected every program to be compiled already, but XLA compiled {len(names)}: "
            f"{', '.join(sorted(set(names)))}. Call warmup first, with the same params, config and batch_size."
        )
