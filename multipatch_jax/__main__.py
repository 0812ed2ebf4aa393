"""`python -m multipatch_jax` is `multipatch-jax`."""

from multipatch_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
