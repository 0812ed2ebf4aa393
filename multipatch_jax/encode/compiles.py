"""Compile programs before they are needed; count those that XLA compiles, or forbid any.

An unexpected compilation is slow and otherwise unnoticed.

JAX reports a program that it reads from its persistent compilation cache as compiled, so it counts here too.
"""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Iterable, Iterator

import jax
from tqdm import tqdm

_EVENT = "/jax/core/compile/backend_compile_duration"


class RecompileError(RuntimeError):
    """A program was compiled inside `forbid_compilations`."""


def compile_all(programs: Iterable[jax.stages.Lowered], *, progress: bool = False) -> None:
    """Compile lowered programs, as many at a time as there are cores, while the caller's thread lowers the next.

    Args:
      programs: what to compile; may be a generator that lowers them.
      progress: whether to show a bar that counts programs.
    """
    compiling = []
    with (
        tqdm(desc="compiling", unit=" programs", disable=not progress, leave=False) as bar,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "multipatch") as pool,
    ):
        for program in programs:  # a thread compiles it, or reads it from the persistent cache
            compiling.append(pool.submit(program.compile))
            compiling[-1].add_done_callback(lambda _: bar.update())
        bar.total = len(compiling)
        bar.refresh()
    for program in compiling:
        program.result()


@functools.cache
def _log() -> list[str]:
    """Return the growing list of names of all programs compiled since the first call.

    The first call registers one listener with JAX, for the life of the process. All blocks read its list.
    """
    names: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT:
            names.append(str(kwargs.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Give the block a list that receives, when the block ends, the names of the programs compiled in it."""
    log, names = _log(), list[str]()
    start = len(log)
    try:
        yield names
    finally:
        names += log[start:]


@contextlib.contextmanager
def forbid_compilations() -> Iterator[None]:
    """Raise a `RecompileError` at the end of the block if any program was compiled in it; the error names them all.

    A service uses it after `warmup`: `with mp.encode.forbid_compilations(): mp.encode_images(...)`.
    """
    with count_compilations() as names:
        yield
    if names:
        raise RecompileError(
            f"Expected every program to be compiled already, but XLA compiled {len(names)}: "
            f"{', '.join(sorted(set(names)))}. Call warmup first, with the same params, config and batch_size."
        )
