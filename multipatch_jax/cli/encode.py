"""`multipatch-jax encode`: write the visual tokens of photographs to a file."""

import argparse
import sys
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.checkpoint import find_folder, read_config
from multipatch_jax.cli.tokens import print_plans, write_tokens
from multipatch_jax.config import DTYPES
from multipatch_jax.files import require_parent
from multipatch_jax.plot import require_matplotlib

HELP = "photographs to visual tokens, written as safetensors"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", type=Path, help="any file that Pillow reads")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a converted or Hugging Face folder, or id")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="tokens_0, tokens_1, ... and each plan in the metadata"
    )
    parser.add_argument("--overlay", type=Path, metavar="FILE.png", help="also draw the tiles on the picture")
    parser.add_argument(
        "--pca", type=Path, metavar="FILE.png", help="also draw the tokens' principal components as colours"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the params and the tokens (default: the checkpoint's)")


def run(args: argparse.Namespace) -> None:
    """Check where everything will be written, print the plans, and only then load the model and encode."""
    for option, path in (("--overlay", args.overlay), ("--pca", args.pca)):
        if path and len(args.photos) > 1:
            raise ValueError(f"{option} draws one photo, got {len(args.photos)}.")
        if path and path.suffix.lower() not in PICTURES:
            raise ValueError(f"{option} writes {', '.join(PICTURES)}, got {path}.")
    if args.pca:
        require_matplotlib()
    for path in filter(None, (args.out, args.overlay, args.pca)):
        require_parent(path)
    names = [str(photo) for photo in args.photos]
    folder = find_folder(args.model)
    plans = print_plans(args.photos, names, read_config(folder), args.overlay)
    config, params = mp.from_pretrained(folder, dtype=args.dtype, progress=sys.stderr.isatty())
    write_tokens(args.photos, names, plans, config, params, args.out, args.pca, args.model)
