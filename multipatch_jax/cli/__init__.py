"""The command `multipatch-jax`: one file for each of its subcommands."""

from multipatch_jax.cli.main import main

__all__ = ["main"]
