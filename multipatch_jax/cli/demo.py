"""`multipatch-jax demo`: encode a photograph, and draw pictures of its tiles and tokens."""

import argparse
import sys
from pathlib import Path

import jax

import multipatch_jax as mp
from multipatch_jax.cli.tokens import print_plans, write_tokens
from multipatch_jax.plot import require_matplotlib
from multipatch_jax.presets import SMOLVLM_256M

HELP = "a photograph to tokens with SmolVLM-256M, and a picture of its tiles"
MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--random-weights", action="store_true", help="use random weights without asking the hub")
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Encode a photograph that comes with scikit-image.

    The weights are the published ones, or random if the hub cannot be reached or `--random-weights` is given.
    """
    try:
        from skimage import data
    except ImportError:
        raise ValueError('the demo\'s photograph comes with scikit-image: pip install "multipatch_jax[demo]"') from None
    require_matplotlib()
    photo, names = [data.chelsea()], ["chelsea"]
    args.out.mkdir(parents=True, exist_ok=True)
    config, params, model = SMOLVLM_256M, None, "random weights"
    if not args.random_weights:
        print(f"Asking the hub for {MODEL} ...", flush=True)
        try:
            config, params = mp.from_pretrained(MODEL, progress=sys.stderr.isatty())
            model = MODEL
        except FileNotFoundError:
            print("The hub cannot be reached.")
    if params is None:
        print("Using random weights (seed 0) of SmolVLM-256M's shapes: the tokens below mean nothing,")
        print("but every step is the real one.", flush=True)
        params = mp.init_params(jax.random.key(0), config)
    plans = print_plans(photo, names, config, args.out / "tiles.png")
    out = args.out / "tokens.safetensors"
    write_tokens(photo, names, plans, config, params, out, args.out / "pca.png", model)
