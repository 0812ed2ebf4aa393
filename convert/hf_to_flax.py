"""A Hugging Face checkpoint -> a folder of params: `python convert/hf_to_flax.py DIR_OR_ID DESTINATION`.

The same as `multipatch-jax convert`, for those who work from a checkout.
"""

import sys

from multipatch_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))
