"""`multipatch-jax ask`: answer a question about photographs, or chat about them."""

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from PIL import Image

import multipatch_jax as mp
from multipatch_jax.checkpoint import default_dtype, read_config
from multipatch_jax.cli.destinations import check_files, check_picture
from multipatch_jax.cli.model import add_revision, find_model
from multipatch_jax.cli.printing import complain, is_watched
from multipatch_jax.cli.waiting import loading, waiting
from multipatch_jax.config import DTYPES
from multipatch_jax.files import replace_file
from multipatch_jax.params import PARTS
from multipatch_jax.plot import plot_saliency, require_matplotlib

HELP = "answer a question about photographs, or chat about them"
EPILOG = """The answer is printed to standard output, and the time it took to standard error.
Without a question, a chat begins: each line of standard input is a question, until it ends (Ctrl-D). The photographs
are encoded once.

for example:
  multipatch-jax ask cat.jpg "What is this?" --model HuggingFaceTB/SmolVLM-256M-Instruct
  multipatch-jax ask before.jpg after.jpg "What has changed?" --model smolvlm-256m --max-tokens 200
  multipatch-jax ask cat.jpg "What is this?" --model smolvlm-256m --heatmap looked-at.png
  multipatch-jax ask cat.jpg --model smolvlm-256m
  multipatch-jax ask demo/page.png "Read the numbers." --model multipatch/reader   (a small model, no network)"""
NAME = "multipatch-jax ask"
CHAT_ANSWERS = 4  # a chat has room for so many of the longest answers, at least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.usage = "%(prog)s PHOTO... [QUESTION] --model DIR_OR_ID [options]"
    parser.add_argument("words", nargs="+", metavar="PHOTO", help="an image file; the question comes last")
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR_OR_ID",
        help='folder or hub id of a model; "multipatch/reader" comes with the package',
    )
    add_revision(parser)
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="end the answer after N tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token each time; above 0, tokens are drawn at random (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random draws (default: %(default)s)")
    parser.add_argument(
        "--keep-special-tokens",
        action="store_true",
        help="keep special tokens in the answer, such as the tags of document models",
    )
    parser.add_argument("--json", action="store_true", help="print the answer and its statistics as one JSON object")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the params (default: float32 on a CPU, elsewhere the checkpoint's)"
    )
    parser.add_argument(
        "--heatmap",
        type=Path,
        metavar="FILE.png",
        help="also draw what the answer looked at, all photographs in one picture",
    )


def run(args: argparse.Namespace) -> None:
    """Check the question and the photographs; then load the model and answer."""
    settings = {"max_new_tokens": args.max_tokens, "temperature": args.temperature, "seed": args.seed}
    settings["skip_special_tokens"] = not args.keep_special_tokens
    mp.generate.settings_of_chats(1, settings)  # called for its errors, before the model is read
    words, question = _photos_and_question(args.words)
    if args.heatmap:
        if question is None:
            raise ValueError("--heatmap draws what one answer looked at: give a question after the photographs.")
        require_matplotlib()
        check_picture("--heatmap", args.heatmap)
        check_files({"--heatmap": args.heatmap}, map(Path, words), args.model)
    photos = [mp.load_image(photo) for photo in words]
    folder = find_model(args.model, args.revision, PARTS)
    content = [*({"type": "image"} for _ in photos), {"type": "text", "text": question or ""}]
    chat = [{"role": "user", "content": content}]
    processor, config = mp.Processor.from_pretrained(folder), read_config(folder)
    length = processor([chat], photos, config=config).input_ids.shape[1]
    length += args.max_tokens * (CHAT_ANSWERS if question is None else 1)
    with loading(folder):
        generator = mp.Generator.from_pretrained(
            folder,
            max_length=mp.generate.round_length(length),
            dtype=args.dtype or default_dtype(),
            progress=is_watched(),
        )
    if question is not None:
        answer = _answer(generator.stream(chat, photos, **settings), args.json)
        if args.heatmap:
            with waiting("finding what the answer looked at"):
                figure = plot_saliency(photos, generator.explain(chat, photos, answer), config)
            with replace_file(args.heatmap) as picture:
                figure.savefig(picture)
            complain(NAME, f"wrote {args.heatmap}")
        return
    with waiting("reading the photographs"):
        session = generator.session(photos)
    for question in _questions():
        _answer(session.stream(question, **settings), args.json)


def _photos_and_question(words: Sequence[str]) -> tuple[Sequence[str], str | None]:
    """Return the photographs, and the question if the last word is one: no file, and no name of an image.

    A single word is a photograph.
    """
    last = words[-1]
    is_image = Path(last).suffix.lower() in Image.registered_extensions() and " " not in last
    if len(words) == 1 or is_image or os.path.isfile(last):  # `Path.is_file` raises an error of a long question
        return words, None
    return words[:-1], last


def _questions() -> Iterator[str]:
    """Yield the lines of standard input that are not empty, after a prompt if somebody types them."""
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 do not end the chat
    while True:
        if is_typed:
            print("> ", end="", flush=True)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(stream: Generator[str, None, mp.generate.Answer], as_json: bool) -> mp.generate.Answer:
    """Print an answer and its statistics, and return it."""
    if as_json:
        with waiting("answering"):
            answer = _finish(stream)
        print(json.dumps({name: value for name, value in dataclasses.asdict(answer).items() if name != "logprobs"}))
    else:
        answer = _print_answer(stream)
    seconds = answer.seconds
    rate = (len(answer.ids) - 1) / seconds["decode"] if seconds["decode"] else 0.0
    complain(
        NAME,
        f"{len(answer.ids)} tokens, {rate:.1f} tokens/s; "
        + ", ".join(f"{name} {seconds[name]:.2f} s" for name in ("encode", "prefill", "decode")),
    )
    return answer


def _finish(stream: Generator[str, None, mp.generate.Answer]) -> mp.generate.Answer:
    """Run a stream to its end, and return the answer."""
    try:
        while True:
            next(stream)
    except StopIteration as end:
        return end.value


def _print_answer(stream: Generator[str, None, mp.generate.Answer]) -> mp.generate.Answer:
    """Print an answer while it grows, and return it."""
    begun = False
    try:
        with waiting("reading the prompt"):
            piece = next(stream)
        begun = True
        while True:
            print(piece, end="", flush=True)
            piece = next(stream)
    except StopIteration as end:
        begun = True
        return end.value
    finally:
        if begun:
            print()
