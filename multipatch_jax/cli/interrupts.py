"""When Ctrl-C takes effect: not before the end of what is better finished, and always in the end."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
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

    Python prints what such a callback raises, and goes on. A moment later the program is out of the callback.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.daemon = True
            timer.start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
