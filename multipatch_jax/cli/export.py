"""`multipatch-jax export`: write programs that encode tiles and run without this package."""

import argparse
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.arguments import require_positive
from multipatch_jax.cli.destinations import check_new_folder
from multipatch_jax.cli.model import add_revision, find_model
from multipatch_jax.cli.printing import is_watched
from multipatch_jax.cli.waiting import loading
from multipatch_jax.config import DTYPES
from multipatch_jax.encode import PLATFORMS

HELP = "write programs that encode tiles on CPU, CUDA and TPU and run without this package"
EPILOG = """for example:
  multipatch-jax export smolvlm-256m-programs --model smolvlm-256m --platform cuda --dtype bfloat16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; it must not exist yet")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or hub id of a model")
    add_revision(parser)
    parser.add_argument(
        "--platform",
        action="append",
        choices=PLATFORMS,
        help="platform to write a program for; may be given several times (default: all three)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="encode at most N tiles at a time on a device (default: chosen for each platform)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the params and the tokens (default: the checkpoint's)"
    )


def run(args: argparse.Namespace) -> None:
    """Export, and print the input and output shapes of each platform's program."""
    check_new_folder("OUT", args.out)
    if args.batch_size is not None:
        require_positive("--batch-size", args.batch_size, "tiles")
    folder = find_model(args.model, args.revision)
    with loading(folder):
        config, params = mp.from_pretrained(folder, dtype=args.dtype, progress=is_watched())
    platforms = args.platform or PLATFORMS
    manifest = mp.export_encoder(
        args.out, config, params, platforms=platforms, batch_size=args.batch_size, progress=is_watched()
    )
    print(f"wrote {args.out}: manifest.json, params.npz and")
    for program in manifest["platforms"].values():
        size = (args.out / program["file"]).stat().st_size
        shapes = f"{program['tiles']} -> {program['tokens']}"
        print(f"  {program['file']:<16} {shapes}, attention {program['attention']}, {size:,} bytes")
    cuda = manifest["platforms"].get("cuda", {})
    if cuda.get("attention") == "plain" and manifest["dtype"] != "float32":
        print('cuda: with the CUDA wheels here (pip install "multipatch_jax[cuda12]") it would use cuDNN\'s attention.')
