"""`multipatch-jax ask`: answer a question about photographs."""

import argparse
import dataclasses
import json
from collections.abc import Generator
from pathlib import Path

import jax

import multipatch_jax as mp
from multipatch_jax.checkpoint import read_config
from multipatch_jax.cli.model import add_revision, find_model, is_watched
from multipatch_jax.cli.printing import complain
from multipatch_jax.config import DTYPES
from multipatch_jax.params import PARTS

HELP = "a question about photographs to the model's answer"
EPILOG = """The answer is printed to standard output, and how long it took to standard error.

for example:
  multipatch-jax ask cat.jpg "What is this?" --model HuggingFaceTB/SmolVLM-256M-Instruct
  multipatch-jax ask before.jpg after.jpg "What has changed?" --model smolvlm-256m --max-tokens 200"""
LEAST_LENGTH = 2048  # columns of a cache; a longer chat gets a power of two, so that few programs serve all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("photos", nargs="+", metavar="PHOTO", type=Path, help="any file that Pillow reads")
    parser.add_argument("question", metavar="QUESTION", help="what to ask about the photographs")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a converted or Hugging Face folder, or id")
    add_revision(parser)
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="most tokens of the answer (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token each time; above 0, tokens are drawn (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the answer and its statistics as one JSON object")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the params (default: float32 on a CPU, elsewhere the checkpoint's)"
    )


def run(args: argparse.Namespace) -> None:
    """Check the question and the photographs; then load the model and answer."""
    settings = {"max_new_tokens": args.max_tokens, "temperature": args.temperature, "seed": args.seed}
    mp.generate.settings_of_chats(1, settings)  # called for its errors, before the model is read
    photos = [mp.load_image(photo) for photo in args.photos]
    folder = find_model(args.model, args.revision, PARTS)
    content = [*({"type": "image"} for _ in photos), {"type": "text", "text": args.question}]
    chat = [{"role": "user", "content": content}]
    processor, config = mp.Processor.from_pretrained(folder), read_config(folder)
    length = processor([chat], photos, config=config).input_ids.shape[1] + args.max_tokens
    generator = mp.Generator.from_pretrained(
        folder,
        max_length=max(LEAST_LENGTH, 2 ** (length - 1).bit_length()),
        dtype=args.dtype or ("float32" if jax.default_backend() == "cpu" else None),
        progress=is_watched(),
    )
    answer = _print_answer(generator.stream(chat, photos, **settings), args.json)
    seconds = answer.seconds
    rate = (len(answer.ids) - 1) / seconds["decode"] if seconds["decode"] else 0.0
    if args.json:
        print(json.dumps({name: value for name, value in dataclasses.asdict(answer).items() if name != "logprobs"}))
    complain(
        "multipatch-jax ask",
        f"{len(answer.ids)} tokens, {rate:.1f} tokens/s; "
        + ", ".join(f"{name} {seconds[name]:.2f} s" for name in ("encode", "prefill", "decode")),
    )


def _print_answer(stream: Generator[str, None, mp.generate.Answer], silent: bool) -> mp.generate.Answer:
    """Print an answer while it grows, unless `silent`, and return it."""
    begun = False
    try:
        while True:
            piece = next(stream)
            if not silent:
                begun = True
                print(piece, end="", flush=True)
    except StopIteration as end:
        begun = not silent
        return end.value
    finally:
        if begun:
            print()
