"""The page that `multipatch-jax demo` reads without a network, with the small model that comes with the package."""

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.numpy import load_file

import multipatch_jax as mp
from multipatch_jax.checkpoint import find_folder
from multipatch_jax.cli.tokens import write_tokens
from multipatch_jax.cli.waiting import waiting
from multipatch_jax.files import replace_file
from multipatch_jax.plot import describe, plot_answers, plot_pipeline

READER = "multipatch/reader"
QUESTION = "Read the numbers."
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
FILES = ("tokens.safetensors", "tiles.png", "pca.png", "page.png", "answers.png", "pipeline.png")


def read_page(out: Path, real_model: str) -> None:
    """Encode the page, read it with its tiles and from the global tile alone, and write pictures of both.

    Args:
      out: the folder to write `FILES` into.
      real_model: the hub id to name as the next step.
    """
    with Image.open(find_folder(READER) / "page.png") as file:
        right, page = file.info["numbers"], mp.load_image(file)
    config, params = mp.from_pretrained(READER, parts="all", dtype="float32")
    processor = mp.Processor.from_pretrained(READER)
    out.mkdir(parents=True, exist_ok=True)
    file, overlay, pca, copy, answers, pipeline = (out / name for name in FILES)
    write_tokens([page], ["page"], config, params, model=READER, out=file, overlay=overlay, pca=pca, say=_nothing)
    tokens = load_file(file)["tokens_0"]
    one_tile = dataclasses.replace(config, tiling=dataclasses.replace(config.tiling, do_image_splitting=False))
    with waiting("reading the page"):
        said, said_of_one = (_answer(page, params, tiled, processor) for tiled in (config, one_tile))
    plan = mp.plan_tiles(page.shape[0], page.shape[1], config.tiling)
    global_tile = mp.tile_image_host(page, config.tiling)[-1]
    with waiting("drawing"):
        with replace_file(copy) as picture:
            Image.fromarray(page).save(picture)
        with replace_file(answers) as picture:
            plot_answers(page, global_tile, plan, (said, said_of_one)).savefig(picture)
        with replace_file(pipeline) as picture:
            figure = plot_pipeline(page, tokens, config, prompt=processor.render(CHAT), answer=said)
            figure.savefig(picture, dpi=150)
    print(f"page: {describe(plan)}")
    print(f"\n{QUESTION}")
    print(f"  with its tiles:              {said}")
    print(f"  from the global tile alone:  {said_of_one}")
    print(f"  written on the page:         {right}")
    print(f"\nwritten into {out}:")
    print("  pipeline.png        how the page became the answer: look at this first")
    print("  answers.png         what the model reads with the tiles, and from the global tile alone")
    print("  tiles.png           the page, with the borders of its tiles")
    print("  pca.png             its tokens as colours: similar tokens have similar colours")
    print("  page.png            the page itself")
    print(f"  tokens.safetensors  its tokens: {len(tokens)} of width {tokens.shape[1]}, {tokens.dtype}")
    print("\nwhat to try next (the small model reads numbers only; the other one is a download of 0.5 GB):")
    print(f'  multipatch-jax ask {copy} "Which number is the largest?" --model multipatch/reader')
    print(f'  multipatch-jax ask photo.jpg "What is this?" --model {real_model}')


def _nothing(line: str) -> None:
    """Say nothing."""


def _answer(page: Any, params: Any, config: mp.ModelConfig, processor: mp.Processor) -> str:
    """Return the answer to the question about the page, cut into tiles as `config` says."""
    generator = mp.Generator(params, config=config, processor=processor, max_length=512)
    (answer,) = generator.generate([CHAT], [page])
    return answer.text.strip()
