"""`multipatch-jax corpus`: tokens or answers for every image of a corpus, as Parquet."""

import argparse
import contextlib
import sys
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.cli.model import add_revision
from multipatch_jax.cli.printing import complain, is_watched
from multipatch_jax.config import DTYPES

HELP = "compute tokens or answers for every image of a corpus, and write them as Parquet"
EPILOG = """MANIFEST is a Parquet table with a column `id` of integers, and `path` (of an image) or `bytes`.
A folder of images, a folder of WebDataset's tar files or one tar file will do too: OUT/manifest.parquet is made of it.

OUT/results has a row for each image: id, path, error (why the image cannot be used, or null), and of the task
  tokens   rows, cols (the grid of tiles) and tokens, lists of numbers
  pooled   num_tokens, and pooled, the mean of the tokens
  ask      answer, finish_reason and num_tokens

The same command goes on where it was stopped, by Ctrl-C, a crash or a power cut; each image comes out once.
Ray runs on this machine, or with --address on a cluster whose machines all reach MANIFEST, OUT and the model.

exit status:
  0    all images have results
  1    all is written, and some images could not be used: the column `error` says why
  2    an error: standard error says which in one line
  130  Ctrl-C: the same command goes on

for example:
  multipatch-jax corpus photos/ tokens/ --model smolvlm-256m --task tokens --token-dtype float16
  multipatch-jax corpus photos.parquet vectors/ --model smolvlm-256m --task pooled
  multipatch-jax corpus pages/ answers/ --model multipatch/reader --task ask --prompt "Read the numbers." """
NAME = "multipatch-jax corpus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("source", metavar="MANIFEST", type=Path, help="Parquet table, or folder of images or tar files")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the run")
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR_OR_ID",
        help='folder or hub id of a model, for ask with all of its parts; "multipatch/reader" comes with the package',
    )
    add_revision(parser)
    parser.add_argument(
        "--task", choices=("tokens", "pooled", "ask"), required=True, help="what to compute for each image"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="for ask: question about each image")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="for ask: end an answer after N tokens (default: 64)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="for ask: above 0, tokens are drawn at random (default: 0)"
    )
    parser.add_argument("--seed", type=int, help="for ask: seed of the random draws (default: 0)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the params (default: float32 on a CPU, elsewhere the checkpoint's)"
    )
    parser.add_argument(
        "--token-dtype",
        choices=DTYPES,
        help="dtype to store, bfloat16 as its 16 bits in uint16 (default: the tokens' own; for pooled float32)",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="tiles in flight on a device, or chats at a time (default: chosen)"
    )
    parser.add_argument(
        "--actors", type=int, metavar="N", help="processes with a model each (default: one for each GPU or TPU host)"
    )
    parser.add_argument(
        "--rows-per-file", type=int, metavar="N", help="images in a file of results (default: 64; for pooled 512)"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="address of a Ray cluster (default: start Ray on this machine)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the corpus, and say how many images there are and what could not be used.

    Returns:
      The exit status: 1 if some images have an error.
    """
    given = {"max_new_tokens": args.max_tokens, "temperature": args.temperature, "seed": args.seed}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # for what Ray prints
            done = mp.corpus.run(
                args.source,
                args.out,
                model=args.model,
                task=args.task,
                prompt=args.prompt,
                settings={name: value for name, value in given.items() if value is not None},
                revision=args.revision,
                dtype=args.dtype,
                token_dtype=args.token_dtype,
                batch_size=args.batch_size,
                actors=args.actors,
                rows_per_file=args.rows_per_file,
                address=args.address,
                progress=is_watched(),
                say=lambda line: complain(NAME, line),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: what is in {args.out} stays, and the same command goes on") from None
    before = f", {done.before} of them by an earlier run" if done.before else ""
    print(f"{done.images} images{before}, {done.errors} with an error, in {done.seconds:.1f} s")
    print(f"wrote {done.results}")
    return int(done.errors > 0)
