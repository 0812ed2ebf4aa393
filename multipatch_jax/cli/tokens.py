"""The steps that `encode` and `demo` share: print the plans of photographs, and write their tokens and pictures."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

import multipatch_jax as mp
from multipatch_jax.files import replace_file
from multipatch_jax.image import TilePlan
from multipatch_jax.plot import describe, draw_tiles, plot_pca


def print_plans(
    photos: Sequence[Any], names: Sequence[str], config: mp.ModelConfig, overlay: Path | None
) -> list[TilePlan]:
    """Print and return each photo's plan, and write a picture of its tiles if `overlay` names a file.

    The pixels are not kept, because the photos may be many and large.
    """
    plans = []
    for photo, name in zip(photos, names, strict=True):
        image = mp.load_image(photo)
        plans.append(mp.plan_tiles(image.shape[0], image.shape[1], config.tiling))
        print(f"{name}: {describe(plans[-1])}")
        if overlay is not None:
            with replace_file(overlay) as file:
                draw_tiles(image, plans[-1]).save(file)
            print(f"wrote {overlay}")
    return plans


def write_tokens(
    photos: Sequence[Any],
    names: Sequence[str],
    plans: Sequence[TilePlan],
    config: mp.ModelConfig,
    params: Any,
    out: Path,
    pca: Path | None,
    model: str,
) -> None:
    """Encode the photos, and write their tokens to a safetensors file with each plan in the metadata.

    Args:
      photos: anything that `load_image` takes.
      names: what the output calls the photos.
      plans: from `print_plans`.
      config, params: the model.
      out: the file to write.
      pca: also write a picture of the tokens here (`plot_pca`); None writes none.
      model: the model's name, for the metadata.
    """
    tokens, entries = {}, []
    for index, (photo, name, plan) in enumerate(zip(photos, names, plans, strict=True)):
        start = time.perf_counter()
        image = mp.load_image(photo)
        tiles = mp.tile_image_host(image, config.tiling)
        encoded = _encode_with_bar(params, tiles, config, name).reshape(plan.num_tokens, -1)
        print(f"{name}: {len(encoded)} tokens of width {encoded.shape[1]}, {encoded.dtype}, ", end="")
        print(f"in {time.perf_counter() - start:.1f} s")
        key = f"tokens_{index}"
        tokens[key] = encoded
        entries.append({"key": key, "file": name, **vars(plan)})
        if pca is not None:
            with replace_file(pca) as file:
                plot_pca(image, encoded, plan, config).savefig(file)
            print(f"wrote {pca}")
    metadata = {"images": json.dumps(entries), "model": model, "multipatch_jax": mp.__version__}
    with replace_file(out) as file:
        save_file(tokens, file, metadata=metadata)
    print(f"wrote {out}")


def _encode_with_bar(params: dict[str, Any], tiles: np.ndarray, config: mp.ModelConfig, name: str) -> np.ndarray:
    """Encode one tile at a time, so that a progress bar can show each."""
    bar = tqdm(list(tiles), desc=name, unit=" tile", disable=None)  # None: no bar unless stderr is a terminal
    return np.concatenate([np.asarray(mp.encode_tiles(params, tile[None], config=config)) for tile in bar])
