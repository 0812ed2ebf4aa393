"""`multipatch-jax plan`: print the tiles and tokens that an image of some size becomes."""

import argparse

import multipatch_jax as mp
from multipatch_jax.checkpoint import local_folder, read_config
from multipatch_jax.plot import describe

HELP = "print how many tiles and tokens an image of some size becomes"
EPILOG = """for example:
  multipatch-jax plan 3000 4000
  multipatch-jax plan 3000 4000 --model Idefics3-8B-Llama3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("height", type=int, help="height of the image in pixels")
    parser.add_argument("width", type=int, help="width of the image in pixels")
    parser.add_argument(
        "--model",
        default="SmolVLM-256M-Instruct",
        metavar="NAME",
        help=f"a model's folder, or one of {', '.join(mp.PRESETS)} (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the plan, and the sizes of the image after each resize."""
    if args.model in mp.PRESETS:
        config = mp.PRESETS[args.model]
    elif folder := local_folder(args.model):
        config = read_config(folder)
    else:
        raise FileNotFoundError(f"--model must be a folder or one of {', '.join(mp.PRESETS)}, got {args.model}.")
    plan = mp.plan_tiles(args.height, args.width, config.tiling)
    print(describe(plan))
    sizes = {
        "source": (plan.height, plan.width),
        "resize 1 (longest edge)": plan.resized,
        "resize 2 (whole tiles)": plan.stretched,
        "tile": (config.tiling.tile_size,) * 2,
    }
    for name, (height, width) in sizes.items():
        print(f"  {name:<24} {height:>6} x {width}")
    print(f"  {'<image> tokens':<24} {plan.num_tiles:>6} x {config.tiling.tokens_per_tile} = {plan.num_tokens}")
