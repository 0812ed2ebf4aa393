"""The step that `encode` and `demo` share: write the tokens of photographs, and pictures of them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import multipatch_jax as mp
from multipatch_jax.cli.printing import is_watched
from multipatch_jax.cli.tokens_file import tokens_file
from multipatch_jax.files import replace_file
from multipatch_jax.params import Params
from multipatch_jax.plot import describe, draw_tiles, plot_pca


def write_tokens(
    photos: Sequence[Any],
    names: Sequence[str],
    config: mp.ModelConfig,
    params: Any,
    *,
    model: str,
    out: Path,
    overlay: Path | None = None,
    pca: Path | None = None,
    on_error: Callable[[str], object] = print,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Encode the photos one after the other, and write their tokens to a safetensors file (see `TokensFile`).

    Each is read once, and the pixels of one are in memory at a time.

    Args:
      photos: anything that `load_image` takes.
      names: what the output calls the photos.
      config, params: the model.
      model: the model's name, for the metadata.
      out: the file to write.
      overlay: also write a picture of the tiles here (`draw_tiles`); None writes none.
      pca: also write a picture of the tokens here (`plot_pca`); None writes none.
      on_error: called with a message for a photo that cannot be read, which is then left out. The error of a photo that
        is the only one is raised.
      say: called with a line for each plan and each file.

    Returns:
      The names of the photos that were left out.

    Raises:
      ValueError: no photo can be read, so nothing is written.
    """
    failed = []
    with tokens_file(out, names, model) as file:
        for index, (photo, name) in enumerate(zip(photos, names, strict=True)):
            start = time.perf_counter()
            try:
                image = mp.load_image(photo)
                plan = mp.plan_tiles(image.shape[0], image.shape[1], config.tiling)
                tiles = mp.tile_image_host(image, config.tiling)
            except (ValueError, OSError) as error:
                if len(photos) == 1:
                    raise
                on_error(f"{name} is left out: {error}")
                file.skip(index)
                failed.append(name)
                continue
            say(f"{name}: {describe(plan)}")
            if overlay is not None:
                with replace_file(overlay) as picture:
                    draw_tiles(image, plan).save(picture)
                say(f"wrote {overlay}")
            tokens = _encode_with_bar(params, tiles, config, name).reshape(plan.num_tokens, -1)
            file.append(index, plan, tokens)
            seconds = time.perf_counter() - start
            say(f"{name}: {len(tokens)} tokens of width {tokens.shape[1]}, {tokens.dtype}, in {seconds:.1f} s")
            if pca is not None:
                with replace_file(pca) as picture:
                    plot_pca(image, tokens, plan, config).savefig(picture)
                say(f"wrote {pca}")
        if not file.count:
            raise ValueError(f"none of the {len(photos)} photographs can be read, so nothing is written.")
    say(f"wrote {out}")
    return failed


def _encode_with_bar(params: Params, tiles: np.ndarray, config: mp.ModelConfig, name: str) -> np.ndarray:
    """Encode one tile at a time, so that a progress bar can show each."""
    with tqdm(list(tiles), desc=name, unit=" tile", disable=not is_watched()) as bar:
        return np.concatenate([np.asarray(mp.encode_tiles(params, tile[None], config=config)) for tile in bar])
