"""The page that `multipatch-jax demo` reads without a network, with the small model that comes with the package."""

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image

import multipatch_jax as mp
from multipatch_jax.checkpoint import find_folder
from multipatch_jax.cli.tokens import write_tokens
from multipatch_jax.files import replace_file
from multipatch_jax.plot import plot_answers

READER = "multipatch/reader"
QUESTION = "Read the numbers."
FILES = ("tokens.safetensors", "tiles.png", "pca.png", "page.png", "answers.png")


def read_page(out: Path, real_model: str) -> None:
    """Encode the page, read it with its tiles and from the global tile alone, and write pictures of both.

    Args:
      out: the folder to write `FILES` into.
      real_model: the hub id to name as the next step.
    """
    with Image.open(find_folder(READER) / "page.png") as file:
        right, page = file.info["numbers"], mp.load_image(file)
    config, params = mp.from_pretrained(READER, parts="all", dtype="float32")
    out.mkdir(parents=True, exist_ok=True)
    tokens, overlay, pca, copy, answers = (out / name for name in FILES)
    write_tokens([page], ["page"], config, params, model=READER, out=tokens, overlay=overlay, pca=pca)
    with replace_file(copy) as picture:
        Image.fromarray(page).save(picture)
    print(f"wrote {copy}")
    one_tile = dataclasses.replace(config, tiling=dataclasses.replace(config.tiling, do_image_splitting=False))
    said = [_answer(page, params, tiled) for tiled in (config, one_tile)]
    print(f"\n{QUESTION}")
    print(f"  with tiles:                  {said[0]}")
    print(f"  from the global tile alone:  {said[1]}")
    print(f"  written on the page:         {right}\n")
    plan = mp.plan_tiles(page.shape[0], page.shape[1], config.tiling)
    global_tile = mp.tile_image_host(page, config.tiling)[-1]
    with replace_file(answers) as picture:
        plot_answers(page, global_tile, plan, (said[0], said[1])).savefig(picture)
    print(f"wrote {answers}")
    print("This model only reads numbers. Ask it about the page yourself, or ask the real one about a photograph:")
    print(f'  multipatch-jax ask {copy} "Which number is the largest?" --model reader')
    print(f'  multipatch-jax ask photo.jpg "What is this?" --model {real_model}')


def _answer(page: Any, params: Any, config: mp.ModelConfig) -> str:
    """Return the answer to the question about the page, cut into tiles as `config` says."""
    generator = mp.Generator(params, config=config, processor=mp.Processor.from_pretrained(READER), max_length=512)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    (answer,) = generator.generate([chat], [page])
    return answer.text.strip()
