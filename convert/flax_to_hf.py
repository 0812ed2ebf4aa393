"""Convert a folder that save_pretrained wrote to Hugging Face's layout.

Usage: `python convert/flax_to_hf.py FOLDER DESTINATION [--base HF_FOLDER]`.
"""

import argparse
import sys
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.checkpoint import saved_parts
from multipatch_jax.params import count_parameters, flatten


def main() -> int:
    """Run the command. Return 0 on success, or 2 after printing to stderr what is wrong with the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="a folder that hf_to_flax.py or save_pretrained wrote")
    parser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--base", type=Path, metavar="HF_FOLDER", help="take from here what the source lacks: language model, tokenizer"
    )
    args = parser.parse_args()
    try:
        config, params = mp.from_pretrained(args.source, parts=saved_parts(args.source))
        mp.export_hf(args.destination, config, params, base=args.base)
    except (ValueError, OSError) as error:
        print(f"flax_to_hf: {error}", file=sys.stderr)
        return 2
    arrays = flatten(params)
    print(f"wrote {args.destination}: {count_parameters(x.shape for x in arrays.values()):,} parameters of the source")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
