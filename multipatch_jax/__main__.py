"""Run the command line: `python -m multipatch_jax` does the same as `multipatch-jax`."""

from multipatch_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
