"""Convert a folder that save_pretrained wrote to Hugging Face's layout.

python convert/flax_to_hf.py smolvlm-256m smolvlm-256m-hf --base HuggingFaceTB/SmolVLM-256M-Instruct --dtype bfloat16
"""

import argparse
import sys
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.cli import add_revision, check_new_folder, find_model, run_command


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    from multipatch_jax.config import DTYPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder that hf_to_flax.py or save_pretrained wrote")
    parser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--base", metavar="DIR_OR_ID", help="take from here what the source lacks: language model, tokenizer"
    )
    add_revision(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of all tensors (default: each keeps its own)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert, and print how much."""
    from multipatch_jax.checkpoint import own_subtrees, saved_parts
    from multipatch_jax.params import PARTS, count_parameters, flatten

    check_new_folder("destination", args.destination)
    parts = saved_parts(args.source)
    if args.revision is not None and args.base is None:
        raise ValueError("--revision is for a hub id that is given as --base: leave the option out.")
    base = None if args.base is None else find_model(args.base, args.revision, PARTS)
    config, params = mp.from_pretrained(args.source, parts=parts)
    own = own_subtrees(config, params)
    if own:
        print(f"left out, for which Hugging Face's layout has no place: {', '.join(own)}", file=sys.stderr)
    params = {key: x for key, x in params.items() if key not in own}
    mp.export_hf(args.destination, config, params, base=base, dtype=args.dtype)
    arrays = flatten(params)
    print(f"wrote {args.destination}: {count_parameters(x.shape for x in arrays.values()):,} parameters of the source")


if __name__ == "__main__":
    raise SystemExit(run_command("flax_to_hf", parser))
