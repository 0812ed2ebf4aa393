"""`multipatch-jax export`: programs of tiles to tokens that run without this package."""

import argparse
import sys
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.config import DTYPES
from multipatch_jax.encode import PLATFORMS

HELP = "programs of tiles -> tokens that jax alone can run, for platforms not here too"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a converted or Hugging Face folder, or id")
    parser.add_argument(
        "--platform", action="append", choices=PLATFORMS, help="may be given several times (default: all three)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="tiles in flight (default: 1 on a CPU, 8 on a TPU, 17 on a GPU)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the params and the tokens; the checkpoint's if left out")


def run(args: argparse.Namespace) -> None:
    """Exports, and prints what each platform's program takes and gives."""
    config, params = mp.from_pretrained(args.model, dtype=args.dtype, progress=sys.stderr.isatty())
    platforms = args.platform or PLATFORMS
    manifest = mp.export_encoder(args.out, config, params, platforms=platforms, batch_size=args.batch_size)
    print(f"wrote {args.out}: manifest.json, params.npz and")
    for program in manifest["platforms"].values():
        size = (args.out / program["file"]).stat().st_size
        shapes = f"{program['tiles']} -> {program['tokens']}"
        print(f"  {program['file']:<16} {shapes}, attention {program['attention']}, {size:,} bytes")
    cuda = manifest["platforms"].get("cuda", {})
    if cuda.get("attention") == "plain" and manifest["dtype"] != "float32":
        print('cuda: with the CUDA wheels here (pip install "multipatch_jax[cuda12]") it would be cuDNN\'s attention.')
