"""Write a trained reader as the package ships it: weights in bfloat16, its files, a model card and a page to read.

python -m examples.reader.release --model reader-run/whole-model --out multipatch_jax/models/reader
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

import multipatch_jax as mp
from examples.reader.pages import draw_page

CARD = Path(__file__).parent / "model_card.md"
PAGE_SIZE, PAGE_SEED, PAGE_NUMBERS = (900, 700), 45, ("42", "508", "7")


def write_page(file: Path) -> None:
    """Draw a page of held-out scans; the right answer is in the PNG's text "numbers"."""
    page = draw_page(np.random.default_rng(PAGE_SEED), PAGE_SIZE[0], PAGE_SIZE[1], PAGE_NUMBERS, held_out=True)
    said = PngImagePlugin.PngInfo()
    said.add_text("numbers", " ".join(page.numbers))
    Image.fromarray(page.pixels).quantize(64).save(file, pnginfo=said, optimize=True)


def main(argv: list[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder that the training wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    args = parser.parse_args(argv)
    config, params = mp.from_pretrained(args.model, parts="all")
    del params["digit_head"]  # of the first stage
    mp.export_hf(args.out, config, params, base=args.model, dtype="bfloat16")
    shutil.copyfile(CARD, args.out / "README.md")
    write_page(args.out / "page.png")
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"wrote {args.out}: {sum(x.size for x in mp.params.flatten(params).values()):,} params, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
