"""`multipatch-jax encode`: write the visual tokens of photographs to a file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.checkpoint import default_dtype
from multipatch_jax.cli.destinations import check_files, check_picture
from multipatch_jax.cli.model import add_revision, find_model
from multipatch_jax.cli.printing import complain, is_watched
from multipatch_jax.cli.tokens import write_tokens
from multipatch_jax.cli.waiting import loading
from multipatch_jax.config import DTYPES
from multipatch_jax.image import count_pixels
from multipatch_jax.plot import require_matplotlib

HELP = "write the visual tokens of photographs to a safetensors file"
EPILOG = """the file:
  tokens_0 holds the tokens of the first PHOTO, tokens_1 those of the second, and so on. The metadata has two JSON
  lists: "images" with the key, file name and plan of each array, "failed" with the index and file name of each PHOTO
  that could not be read.

exit status:
  0    all tokens are written
  1    some photographs could not be read and are left out: standard error names them
  2    an error, such as wrong input: standard error says which in one line
  130  Ctrl-C: the tokens of the photographs that were finished are written
  141  all is written, but a program such as head did not read all that was printed

for example:
  multipatch-jax encode cat.jpg --model smolvlm-256m --out cat.safetensors --overlay cat-tiles.png
  multipatch-jax encode photos/*.jpg --model HuggingFaceTB/SmolVLM-256M-Instruct --out photos.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", type=Path, help="an image file")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or hub id of a model")
    add_revision(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="file to write the tokens to")
    parser.add_argument("--overlay", type=Path, metavar="FILE.png", help="also draw the tiles on the picture")
    parser.add_argument(
        "--pca", type=Path, metavar="FILE.png", help="also draw the tokens as colours, by their principal components"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the params and the tokens (default: float32 on a CPU, elsewhere the checkpoint's)",
    )


def run(args: argparse.Namespace) -> int:
    """Check where everything will be written and whether there is a photo to read; then load the model and encode.

    Returns:
      The exit status: 1 if some photos were left out.
    """
    for option, path in (("--overlay", args.overlay), ("--pca", args.pca)):
        if path and len(args.photos) > 1:
            raise ValueError(f"{option} draws one photo, got {len(args.photos)}.")
        check_picture(option, path)
    if args.pca:
        require_matplotlib()
    check_files({"--out": args.out, "--overlay": args.overlay, "--pca": args.pca}, args.photos, args.model)
    _require_a_photo(args.photos)
    folder = find_model(args.model, args.revision)
    with loading(folder):
        config, params = mp.from_pretrained(folder, dtype=args.dtype or default_dtype(), progress=is_watched())
    name = "multipatch-jax encode"
    failed = write_tokens(
        args.photos,
        [str(photo) for photo in args.photos],
        config,
        params,
        model=args.model,
        out=args.out,
        overlay=args.overlay,
        pca=args.pca,
        on_error=lambda message: complain(name, message),
    )
    if failed:
        complain(name, f"{len(failed)} of {len(args.photos)} photographs are left out: {', '.join(failed)}")
    return int(bool(failed))


def _require_a_photo(photos: Sequence[Path]) -> None:
    """Raise an error if none of the photos can be opened. Only the beginnings of files are read, up to a good one."""
    errors = []
    for photo in photos:
        try:
            if not photo.is_fifo():  # which can be read only once
                count_pixels(photo)
            return
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    raise ValueError(f"none of the {len(photos)} photographs can be read: {'; '.join(map(str, errors[:5]))}{more}")
