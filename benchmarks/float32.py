"""How far float32 is from float64, ours by the terms summed in one go: `python -m benchmarks.float32`.

Needs the `test` extra. SmolVLM-256M's tower and connector with random weights, one tile of a photograph: the distance
of our tokens from the float64 reference's over the distance of the float32 reference's, and seconds a tile. The seconds
are of one process after torch has run in it; `benchmarks.cpu` is what compares systems.
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from skimage import data

import multipatch_jax as mp
import multipatch_reference as reference
from multipatch_jax.nn import linear
from multipatch_jax.nn.attention import plain

BLOCKS = (256, 384, 512, 16384)  # the last is more than any sum has: one accumulator
TURNS = 5


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative norm, in float64."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


def main() -> None:
    text = dataclasses.replace(mp.presets.SMOLVLM_256M.text, num_hidden_layers=1)
    config = dataclasses.replace(mp.presets.SMOLVLM_256M, text=text)
    model = reference.reference_model(config)
    with tempfile.TemporaryDirectory() as folder:
        config, params = mp.from_pretrained(reference.save_checkpoint(model, config, Path(folder)))
    config = dataclasses.replace(config, attention="blocked")  # XLA's code, whose blocks are these
    tiles = mp.tile_image_host(data.chelsea(), config.tiling)[-1:]
    pixels = np.asarray(mp.image.normalize(jax.numpy.asarray(tiles)))
    _, tokens32 = reference.image_features(model, pixels)
    _, tokens64 = reference.image_features(model.double(), pixels)
    theirs = distance(tokens32, tokens64)
    print(f"the reference in float32 is {theirs:.1e} from float64")
    for block in BLOCKS:
        jax.clear_caches()
        with mock.patch.object(linear, "BLOCK", block), mock.patch.object(plain, "BLOCK", block):
            tokens = np.asarray(mp.encode_tiles(params, tiles, config=config))
        seconds = []
        for _ in range(TURNS):
            start = time.perf_counter()
            mp.encode_tiles(params, tiles, config=config).block_until_ready()
            seconds.append(time.perf_counter() - start)
        ratio = distance(tokens, tokens64) / theirs
        print(f"blocks of {block:<5}  {ratio:5.2f} x as far   {statistics.median(seconds):5.2f} s a tile", flush=True)


if __name__ == "__main__":
    main()
