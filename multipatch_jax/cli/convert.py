"""`multipatch-jax convert`: write a Hugging Face checkpoint as a folder in our own layout."""

import argparse
import time
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.cli.destinations import check_new_folder
from multipatch_jax.cli.interrupts import interrupt_later
from multipatch_jax.cli.model import add_revision, find_model
from multipatch_jax.cli.printing import is_watched
from multipatch_jax.cli.waiting import loading, waiting
from multipatch_jax.config import DTYPES
from multipatch_jax.params import PARTS, count_parameters, flatten, tensors

HELP = "write a Hugging Face checkpoint as a folder that loads with Orbax"
EPILOG = """The tokenizer, the chat templates and the settings of processors and text generation are copied.

for example:
  multipatch-jax convert HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("source", metavar="DIR_OR_ID", help="folder or hub id of a Hugging Face checkpoint")
    add_revision(parser)
    parser.add_argument("destination", type=Path, help="folder to write; it must not exist yet")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the params (default: the checkpoint's, bit for bit)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=["vision", "connector"],
        help="parts of the model to convert (default: vision connector)",
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and print what was read and written."""
    check_new_folder("destination", args.destination)
    folder = find_model(args.source, args.revision, args.parts)
    start = time.perf_counter()
    with loading(folder):
        config, params = mp.from_pretrained(folder, dtype=args.dtype, parts=args.parts, progress=is_watched())
    loaded = time.perf_counter()
    # Without the wait, Orbax's threads would go on without the folder.
    with interrupt_later(f"{args.destination} is written"), waiting(f"writing {args.destination}"):
        mp.save_pretrained(args.destination, config, params, base=folder)
    arrays = flatten(params)
    dtypes = sorted({array.dtype.name for array in arrays.values()})
    num_tensors = sum(tensor.path in arrays for tensor in tensors(config).values())
    print(f"wrote {args.destination}: {', '.join(args.parts)}")
    print(f"  tensors     {num_tensors:>14,} read, {len(arrays)} arrays written (layers are stacked)")
    print(f"  parameters  {count_parameters(array.shape for array in arrays.values()):>14,}")
    print(f"  dtype       {', '.join(dtypes):>14}")
    print(f"  bytes       {sum(array.nbytes for array in arrays.values()):>14,}")
    print(f"  seconds     {time.perf_counter() - start:>14.1f} ({loaded - start:.1f} to read)")
