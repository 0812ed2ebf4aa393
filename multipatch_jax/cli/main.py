"""Parse the command line, and run the command that it names."""

import argparse
from collections.abc import Sequence

import multipatch_jax as mp
from multipatch_jax.cli.ending import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status (see `ending`)."""
    return run_command("multipatch-jax", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    # Here, where Ctrl-C is handled already.
    from multipatch_jax.cli import ask, convert, corpus, demo, encode, export, plan

    parser = argparse.ArgumentParser(
        prog="multipatch-jax",
        description="Any image to the visual tokens of the SmolVLM / Idefics3 family.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""a first session:
  multipatch-jax demo                                     a photograph, its tiles and tokens, into demo/
  multipatch-jax plan 3000 4000                           how many tiles and tokens a size costs
  multipatch-jax convert HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m
  multipatch-jax encode cat.jpg --model smolvlm-256m --out cat.safetensors --overlay cat-tiles.png
  multipatch-jax ask cat.jpg "What is this?" --model HuggingFaceTB/SmolVLM-256M-Instruct

Each command has its own --help. An error is one line on standard error, with exit status 2.""",
    )
    parser.add_argument("--version", action="version", version=f"multipatch_jax {mp.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (ask, encode, plan, convert, export, corpus, demo):
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
