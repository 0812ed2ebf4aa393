"""Parse the command line, and run the command that it names."""

import argparse
from collections.abc import Sequence

import multipatch_jax as mp
from multipatch_jax.cli.ending import run_command

FIRST_SESSION = """a first session:
  multipatch-jax demo --reader                 a small model reads a page, without a network: see demo/pipeline.png
  multipatch-jax ask demo/page.png "Which number is the largest?" --model multipatch/reader
  multipatch-jax plan 3000 4000                how many tiles and tokens an image of this size becomes
  multipatch-jax ask cat.jpg "What is this?" --model HuggingFaceTB/SmolVLM-256M-Instruct
  multipatch-jax convert HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m
  multipatch-jax encode cat.jpg --model smolvlm-256m --out cat.safetensors --overlay cat-tiles.png
  multipatch-jax corpus photos/ tokens/ --model smolvlm-256m --task tokens

`multipatch-jax COMMAND --help` explains a command. An error is one line on standard error, with exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status (see `ending`). Without a command, print the help."""
    return run_command("multipatch-jax", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    # Here, where Ctrl-C is handled already.
    from multipatch_jax.cli import ask, convert, corpus, demo, encode, export, plan

    parser = argparse.ArgumentParser(
        prog="multipatch-jax",
        description="Turn images of any size into visual tokens of the SmolVLM / Idefics3 family, and into answers.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=FIRST_SESSION,
    )
    parser.add_argument("--version", action="version", version=f"multipatch_jax {mp.__version__}")
    parser.set_defaults(run=lambda _: parser.print_help())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in (demo, plan, ask, encode, corpus, convert, export):
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=module.EPILOG,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
