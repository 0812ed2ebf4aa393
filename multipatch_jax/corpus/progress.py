"""Count what the actors begin and have done, and show it as a bar."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

EVERY = 0.5  # seconds between two looks


class Counter:
    """What all actors have done, counted by an actor of its own: images, errors among them, and tokens."""

    def __init__(self):
        self._done = [0, 0, 0]
        self._tries: dict[int, int] = {}
        self._failure: str | None = None

    def fail(self, reason: str) -> None:
        """Keep the reason for which an actor gives up; the first one stays."""
        self._failure = self._failure or reason

    def failure(self) -> str | None:
        """Return why an actor gave up, or None."""
        return self._failure

    def begin(self, first_id: int) -> int:
        """Return how often the batch that starts with this id was begun and not ended, this time included."""
        self._tries[first_id] = self._tries.get(first_id, 0) + 1
        return self._tries[first_id]

    def end(self, first_id: int) -> None:
        """Forget a batch whose results are computed."""
        self._tries.pop(first_id, None)

    def add(self, images: int, errors: int, tokens: int) -> None:
        """Count what an actor has done."""
        self._done = [now + more for now, more in zip(self._done, (images, errors, tokens), strict=True)]

    def read(self) -> tuple[int, int, int]:
        """Return (images, errors, tokens) so far."""
        images, errors, tokens = self._done
        return images, errors, tokens


@contextlib.contextmanager
def bar_of(counter: Any, done: int, total: int, progress: bool) -> Iterator[None]:
    """Show a bar of images with images/s, tokens/s, errors and the time left, while the block runs.

    Args:
      counter: the handle of a `Counter`.
      done: images that an earlier run has done.
      total: images in all.
      progress: whether to show it at all.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    over = threading.Event()

    def show() -> None:
        with tqdm(total=total, initial=done, desc="loading the model", unit=" images", smoothing=0.1) as bar:
            seen, started = 0, time.monotonic()
            while True:
                finished = over.wait(EVERY)
                try:
                    images, errors, tokens = ray.get(counter.read.remote(), timeout=10)
                except (RayError, GetTimeoutError):  # the cluster is gone; the block says why
                    return
                if images:
                    rate = tokens / (time.monotonic() - started)
                    bar.set_description("corpus", refresh=False)
                    bar.set_postfix({"tokens/s": f"{rate:.0f}", "errors": errors}, refresh=False)
                else:  # the time of loading is not part of the rates
                    started = time.monotonic()
                    bar.unpause()
                # What a killed actor had done and not written is done, and counted, again.
                bar.update(max(0, min(images, total - done) - seen))
                seen = max(seen, min(images, total - done))
                bar.refresh()
                if finished:
                    return

    thread = threading.Thread(target=show, name="multipatch-progress", daemon=True)
    if progress:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if progress:
            thread.join(15)
