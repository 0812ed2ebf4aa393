"""The options of a command, with its docstring as the help text."""

import argparse


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that prints `description` as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def turns_parser(description: str | None, rounds: int, help: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command whose systems take turns.

    `--rounds` counts the turns of each system. The hidden `--worker FOLDER NAME...` starts the process of some systems.
    """
    options = parser(description)
    options.add_argument("--rounds", type=int, default=rounds, help=help)
    options.add_argument("--worker", nargs="+", metavar=("FOLDER", "NAME"), help=argparse.SUPPRESS)
    return options
