"""Print so that a closed pipe or a full disk does not end the work, and know whether somebody looks."""

import contextlib
import io
import os
import sys
from typing import TextIO


def complain(name: str, what: BaseException | str, otherwise: str = "") -> None:
    """Print one line to standard error, if it can be written.

    Args:
      name: the program's, and its command's.
      what: the message, or an exception, whose notes are added to its message.
      otherwise: the message of an exception that has none.
    """
    lines = [*(str(what) or otherwise or type(what).__name__).splitlines(), *getattr(what, "__notes__", [])]
    stream = sys.stderr
    if stream is None:  # closed, as Python has it
        return
    try:
        print(f"{name}: {'; '.join(lines)}", file=stream, flush=True)
    except OSError:
        _discard(stream)


def is_watched() -> bool:
    """Whether somebody may be looking at a progress bar."""
    return sys.stderr is not None and sys.stderr.isatty()


class Output(io.TextIOBase):
    """Standard output that never raises, so that a command goes on with its work when nobody reads what it prints.

    Attributes:
      error: why printing failed; None if it did not. Nothing is printed after the first failure.
    """

    def __init__(self, stream: TextIO | None):
        """Write to `stream`; None is a closed one, as Python has it."""
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, line by line. Characters that the encoding lacks are written as escapes."""
        if (stream := self._open_stream()) is not None:
            encoding = stream.encoding or "utf-8"
            try:
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except OSError as error:
                self._fail(error)
            if "\n" in text:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Show what has been written, as a line that is not finished."""
        if (stream := self._open_stream()) is not None:
            try:
                stream.flush()
            except OSError as error:
                self._fail(error)

    def _open_stream(self) -> TextIO | None:
        """Return the stream if it can be written. Python flushes this object late: the stream may be closed by then."""
        return None if self._stream is None or self.error is not None or self._stream.closed else self._stream

    def _fail(self, error: OSError) -> None:
        self.error = error
        if self._stream is not None:
            _discard(self._stream)


def _discard(stream: TextIO) -> None:
    """Send what is in a stream's buffer, and all that follows, to nowhere, so that Python does not fail at its exit."""
    with contextlib.suppress(OSError):  # it is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
