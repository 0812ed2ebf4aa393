"""`multipatch-jax demo`: encode a photograph or read a page, and draw pictures of how it is done."""

import argparse
import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import jax

import multipatch_jax as mp
from multipatch_jax.checkpoint import local_folder
from multipatch_jax.cli.destinations import check_files, check_new_folder
from multipatch_jax.cli.printing import is_watched
from multipatch_jax.cli.reader import FILES, READER, read_page
from multipatch_jax.cli.tokens import write_tokens
from multipatch_jax.cli.waiting import waiting
from multipatch_jax.plot import require_matplotlib
from multipatch_jax.presets import SMOLVLM_256M

HELP = "encode a photograph with SmolVLM-256M; without a network, read a page with a small model"
EPILOG = """With a connection, a photograph of a cat goes through SmolVLM-256M's published tower (a download of 0.5 GB).
If the hub does not answer at once, a small model that comes with the package reads a page of handwritten numbers.

for example:
  multipatch-jax demo
  multipatch-jax demo --reader --out reader"""
MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"
PATIENCE = 3  # seconds that the hub has for its answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--reader", action="store_true", help="read the page with the small model, without asking the hub"
    )
    kind.add_argument(
        "--random-weights",
        action="store_true",
        help="encode the photograph with random weights of SmolVLM-256M's shapes, without asking the hub",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder to write into (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Encode a photograph that comes with scikit-image, or read the page that comes with the package."""
    try:
        from skimage import data
    except ImportError:
        raise ImportError(
            'the demo\'s photograph comes with scikit-image: pip install "multipatch_jax[demo]"'
        ) from None
    require_matplotlib()
    files = {name: args.out / name for name in FILES}
    if os.path.isdir(args.out):
        check_files({f"--out: {name}": file for name, file in files.items()})
    else:
        check_new_folder("--out", args.out)
    if args.reader:
        read_page(args.out, MODEL)
        return
    found = None if args.random_weights else load_published()
    if found is None and not args.random_weights:
        try:
            local_folder(READER)
        except FileNotFoundError as error:
            print(f"The hub did not answer. {error}")
        else:
            print("The hub did not answer, so a small model that comes with the package reads a page of numbers.")
            read_page(args.out, MODEL)
            return
    if found is None:
        print(
            "Using random weights (seed 0) of SmolVLM-256M's shapes: the tokens mean nothing, but every step is real."
        )
    with waiting("making random weights") if found is None else contextlib.nullcontext():
        config, params = found or (SMOLVLM_256M, mp.init_params(jax.random.key(0), SMOLVLM_256M))
    encode_photograph(data.chelsea(), args.out, config, params, MODEL if found else "random weights")


def encode_photograph(photo: Any, out: Path, config: mp.ModelConfig, params: Any, model: str) -> None:
    """Write the tokens of a photograph of a cat, and pictures of them; print what was done and what to do next.

    Args:
      photo: the photograph.
      out: the folder to write into.
      config, params: the model.
      model: its name.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, overlay, pca = (out / name for name in FILES[:3])
    done = []
    write_tokens([photo], ["cat"], config, params, model=model, out=file, overlay=overlay, pca=pca, say=done.append)
    print("\n".join(line for line in done if not line.startswith("wrote ")))
    print(f"\nwritten into {out}:")
    print("  tiles.png           the photograph, with the borders of its tiles: look at this first")
    print("  pca.png             its tokens as colours: similar tokens have similar colours")
    print("  tokens.safetensors  its tokens")
    print("\nwhat to try next:")
    print(f'  multipatch-jax ask photo.jpg "What is this?" --model {MODEL}')
    print(f"  multipatch-jax encode photo.jpg --model {MODEL} --out photo.safetensors")
    print("  multipatch-jax demo --reader --out reader    (a small model reads a page, without a network)")


def load_published() -> tuple[mp.ModelConfig, dict[str, Any]] | None:
    """Load the published model from the hub's cache or the hub; return None if the hub does not answer.

    The hub is asked once. Its client would otherwise try again for half a minute.
    """
    with contextlib.suppress(FileNotFoundError):
        return mp.from_pretrained(MODEL, local_files_only=True, progress=is_watched())
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # of the HTTP library: which one depends on the client's version
            answers.append(get_hf_file_metadata(hf_hub_url(MODEL, "config.json"), timeout=PATIENCE))

    # The time limit does not cover the look-up of the name, which may take much longer, so a thread waits for it.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if answers:
        with contextlib.suppress(FileNotFoundError):
            return mp.from_pretrained(MODEL, progress=is_watched())
    return None
