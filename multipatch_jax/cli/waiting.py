"""Show on a terminal that a step goes on whose parts cannot be counted, such as compiling or writing."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from multipatch_jax.checkpoint import is_saved
from multipatch_jax.cli.printing import is_watched

PATIENCE, PERIOD = 2.0, 0.5  # seconds until the line is shown, and between two updates of it


@contextlib.contextmanager
def waiting(step: str) -> Iterator[None]:
    """Show `step` and its seconds on standard error while the block runs, once it has run for two seconds.

    The line is wiped at the end. Nothing is shown where standard error is no terminal.

    Args:
      step: what the block does, such as "compiling".
    """
    if not is_watched():
        yield
        return
    ended, start = threading.Event(), time.time()

    def show() -> None:
        if ended.wait(PATIENCE):
            return
        # With a delay, the line is not shown before its beginning is set to the step's.
        with tqdm(desc=step, bar_format="{desc}: {elapsed}", leave=False, delay=1e-3) as line:
            line.start_t = start
            while True:
                line.refresh()
                if ended.wait(PERIOD):
                    return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def loading(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Wait for the params of a folder of our own; the library shows a bar while it reads one of Hugging Face's."""
    return waiting("loading") if is_saved(folder) else contextlib.nullcontext()
