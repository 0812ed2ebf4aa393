"""The command `multipatch-jax`: one file for each of its subcommands.

The scripts in `convert/` use the rest: `run_command` ends a command in one line, whatever happens.
"""

from multipatch_jax.cli.destinations import check_new_folder
from multipatch_jax.cli.ending import run_command
from multipatch_jax.cli.main import main
from multipatch_jax.cli.model import add_revision, find_model

__all__ = ["add_revision", "check_new_folder", "find_model", "main", "run_command"]
