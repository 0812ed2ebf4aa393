"""Run a command so that it ends in one line: after an error in the input, Ctrl-C, a closed pipe or a full disk.

| exit status | meaning |
|---|---|
| 0 | success |
| 1 | the results are written, and a line on standard error says what is missing |
| 2 | an error, which is one line on standard error |
| 130 | Ctrl-C; what was finished is kept, and a line on standard error says so |
| 141 | the results are written, and what was printed was cut off by its reader, such as `head` |

130 and 141 are what a shell reports of programs that SIGINT or SIGPIPE has ended.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence

from multipatch_jax.cli.interrupts import interrupt_later, no_interrupt_lost
from multipatch_jax.cli.printing import Output, complain


def run_command(
    name: str, make_parser: Callable[[], argparse.ArgumentParser], arguments: Sequence[str] | None = None
) -> int:
    """Parse the arguments, call the function `run` that the parser puts among them, and return the exit status.

    Args:
      name: the program's, for messages.
      make_parser: makes the parser. It imports what takes long, because Ctrl-C is handled from here on.
      arguments: of the command line; None takes this process's.
    """
    output = Output(sys.stdout)
    with contextlib.redirect_stdout(output), no_interrupt_lost():
        try:
            with interrupt_later():  # some libraries fail in their own ways if they are interrupted at their import
                parser = make_parser()
            args = parser.parse_args(arguments)
            name = " ".join(filter(None, [name, getattr(args, "command", None)]))
            status = args.run(args) or 0
        except SystemExit as exit:  # by the parser: help, or wrong usage
            status = int(exit.code or 0)
        except KeyboardInterrupt as error:
            complain(name, error, "interrupted")
            status = 130
        except (ValueError, OSError, ImportError, MemoryError) as error:
            complain(name, error)
            status = 2
    if status > 1 or output.error is None:
        return status
    if isinstance(output.error, BrokenPipeError):
        return status or 141
    complain(name, f"not all of the output was printed ({output.error.strerror}); the results are written")
    return 1
