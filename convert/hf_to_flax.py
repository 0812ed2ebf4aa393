"""Convert a Hugging Face checkpoint to a folder in the layout of save_pretrained.

Usage: `python convert/hf_to_flax.py DIR_OR_ID DESTINATION [--revision REV]`, from a checkout of the repository. It does
the same as the command `multipatch-jax convert`.
"""

import sys

from multipatch_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))
