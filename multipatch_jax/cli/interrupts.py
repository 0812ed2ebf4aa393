"""When Ctrl-C takes effect: not before the end of what is better finished, and always in the end."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType
from typing import Any


@contextlib.contextmanager
def interrupt_later(*done: str) -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block; the second one does not wait.

    Args:
      done: what will be finished then, for the message of the KeyboardInterrupt.
    """
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = []

    def wait(number: int, frame: Any) -> None:
        waiting.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt("; ".join(["interrupted", *done]))


@contextlib.contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Raise Ctrl-C again if it came while Python ran a callback, such as JAX's at garbage collections.

    Python prints what such a callback raises, and goes on.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Thread(target=again, daemon=True).start()
        else:
            before(unraisable)

    def again() -> None:
        # Python drops what a hook raises, and on a busy machine the main thread may be in the hook for long.
        while _runs_in_main_thread(hook.__code__):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _runs_in_main_thread(code: CodeType) -> bool:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
