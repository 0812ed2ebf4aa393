"""Parse the command line, and run the command that it names."""

import argparse
import sys
from collections.abc import Sequence

import multipatch_jax as mp
from multipatch_jax.cli import convert, demo, encode, export, plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
      The exit status: 0 for success, 2 after an error in the input, which is printed to stderr as one line.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"multipatch-jax {args.command}: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multipatch-jax",
        description="Any image to the visual tokens of the SmolVLM / Idefics3 family.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""a first session:
  multipatch-jax demo                                     a photograph, its tiles and tokens, into demo/
  multipatch-jax plan 3000 4000                           how many tiles and tokens a size costs
  multipatch-jax convert HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m
  multipatch-jax encode cat.jpg --model smolvlm-256m --out cat.safetensors --overlay cat-tiles.png""",
    )
    parser.add_argument("--version", action="version", version=f"multipatch_jax {mp.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (encode, plan, convert, export, demo):
        name = module.__name__.rpartition(".")[2]
        description = module.HELP[0].upper() + module.HELP[1:] + "."
        command = commands.add_parser(name, help=module.HELP, description=description)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
