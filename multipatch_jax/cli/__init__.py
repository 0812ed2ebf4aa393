"""The command `multipatch-jax`: a file a command."""

from multipatch_jax.cli.main import main

__all__ = ["main"]
