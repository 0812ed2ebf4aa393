"""Count how many pages of held-out scans a reader answers exactly, with the tiles and from the global tile alone.

python -m examples.reader.evaluate
python -m examples.reader.evaluate --model reader-run/whole-model --pages 200
"""

import argparse
import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import multipatch_jax as mp
from examples.reader import reading
from examples.reader.model import COUNT, LARGEST, READ
from examples.reader.pages import FEW, MANY, Content, Page, random_page, random_size

SIZES = (300, 1600)  # pixels of a side of a page
TRAINING_PAGES = 300  # whose most frequent answer is the constant guess


def random_pages(number: int, content: Content, *, seed: int, held_out: bool = True) -> list[Page]:
    """Return pages of random sizes with held-out scans, or with those of the training; a function of the seed."""
    rng = np.random.default_rng((seed, 100))
    return [_page(rng, content, held_out) for _ in range(number)]


def _page(rng: np.random.Generator, content: Content, held_out: bool) -> Page:
    height, width = random_size(rng, *SIZES)
    return random_page(rng, height, width, content=content, held_out=held_out)


def answer(generator: mp.Generator, pages: Sequence[Page], question: str) -> list[str]:
    """Ask a question about each page, and return the answers."""
    asked = [{"type": "image"}, {"type": "text", "text": question}]
    chats = [[{"role": "user", "content": asked}] for _ in pages]
    found, size = [], 16
    for start in tqdm(range(0, len(pages), size), desc=question, leave=False):
        part = slice(start, start + size)
        images = [[page.pixels] for page in pages[part]]
        found += [one.text.strip() for one in generator.generate(chats[part], images, max_new_tokens=32)]
    return found


def exact(generator: mp.Generator, pages: Sequence[Page], question: str = READ) -> float:
    """Return the share of the pages whose answer is exactly right."""
    right = [reading.answers(page)[question] for page in pages]
    return float(np.mean([a == b for a, b in zip(answer(generator, pages, question), right, strict=True)]))


def constant_guess(question: str, pages: Sequence[Page]) -> float:
    """Return how often the most frequent answer of training pages is right."""
    likely = collections.Counter(
        reading.answers(page)[question] for page in random_pages(TRAINING_PAGES, FEW, seed=7, held_out=False)
    )
    (guess, _), *_ = likely.most_common(1)
    return float(np.mean([reading.answers(page)[question] == guess for page in pages]))


def global_only(config: mp.ModelConfig) -> mp.ModelConfig:
    """Return the config with which an image is its global tile alone."""
    return dataclasses.replace(config, tiling=dataclasses.replace(config.tiling, do_image_splitting=False))


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="multipatch/reader", help="a name or folder (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=500, help="number of pages of each row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the pages (default: %(default)s)")
    args = parser.parse_args(argv)
    config, params = mp.from_pretrained(args.model, parts="all", dtype="float32")
    processor = mp.Processor.from_pretrained(args.model)

    def generator(config: mp.ModelConfig) -> Any:
        return mp.Generator(params, config=config, processor=processor, max_length=512, batch_size=16)

    tiled, squashed = generator(config), generator(global_only(config))
    few, many = (random_pages(args.pages, content, seed=args.seed) for content in (FEW, MANY))
    print(f"{args.model} on a {jax.default_backend().upper()}, {args.pages} pages, seed {args.seed}")
    print(f"pages of {SIZES[0]} to {SIZES[1]} pixels a side; scans: every fourth of scikit-learn's digits, held out")
    print(f"up to {FEW.digits} digits in up to {FEW.numbers} numbers, read exactly:")
    print(f"  with tiles            {exact(tiled, few):6.1%}")
    print(f"  global tile alone     {exact(squashed, few):6.1%}")
    print(f"up to {MANY.digits} digits in up to {MANY.numbers} numbers, read exactly:")
    print(f"  with tiles            {exact(tiled, many):6.1%}")
    for question in (COUNT, LARGEST):
        print(f"{question} (up to {FEW.digits} digits)")
        print(f"  with tiles            {exact(tiled, few, question):6.1%}")
        print(f"  constant guess        {constant_guess(question, few):6.1%}")


if __name__ == "__main__":
    main()
