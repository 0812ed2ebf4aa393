"""Run transformers (the reference) and multipatch_jax on one checkpoint, and name the first stage that differs.

    python convert/verify.py HuggingFaceTB/SmolVLM-256M-Instruct --image photo.jpg
    python convert/verify.py SmolVLM-256M-Instruct       a preset's name: random weights of its shapes, no download

Both compute in float32, transformers on the CPU and multipatch_jax on JAX's default device. The script needs torch and
transformers: pip install "multipatch_jax[test]". The exit status is 0 if every stage agrees, 1 if one differs, 2 after
an error.
"""

import argparse
import tempfile
from pathlib import Path

import multipatch_jax as mp
from multipatch_jax.cli import add_revision, find_model, run_command


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a folder, a hub id, or one of {', '.join(mp.PRESETS)}")
    add_revision(parser)
    parser.add_argument(
        "--image", type=Path, metavar="PHOTO", help="default: a photograph that comes with scikit-image"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the distance of each stage from the reference. Return 0 if every stage agrees, 1 if one differs."""
    from skimage import data

    from multipatch_jax.params import PARTS
    from multipatch_reference import LIMIT, random_checkpoint, stages

    image = mp.load_image(args.image) if args.image else data.chelsea()
    random = args.model in mp.PRESETS
    if random and args.revision is not None:
        raise ValueError(f"--revision is for a hub id, and {args.model} is a preset's name: leave the option out.")
    with tempfile.TemporaryDirectory() as temporary:
        if random:
            folder = random_checkpoint(args.model, Path(temporary))
        else:
            folder = find_model(args.model, args.revision, PARTS)
        print(f"{args.model}: {'random weights of its shapes' if random else folder}")
        print(f"{'stage':<12} distance from the reference")
        first = None
        for stage, error in stages(folder, image):
            agrees = error <= LIMIT
            first = first or (None if agrees else stage)
            print(f"{stage:<12} {error:.2e}{'' if agrees else '   <-- differs'}", flush=True)
    print(f"The first stage that differs is: {first}." if first else f"Every stage agrees (limit {LIMIT:g}).")
    return 1 if first else 0


if __name__ == "__main__":
    raise SystemExit(run_command("verify", parser))
