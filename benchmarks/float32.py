"""Compares float32 with float64, for blocks of several lengths in our float32 sums: `python -m benchmarks.float32`.

Needs the `test` extra. Encodes one tile of a photograph with SmolVLM-256M's tower and connector and random weights. For
each length of a block, prints the distance of our float32 tokens from the float64 reference's, divided by the distance
of the float32 reference's, and the seconds a tile. torch runs in the same process before, so compare systems by
`benchmarks.cpu` and not by these seconds.
"""

import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from skimage import data

import multipatch_jax as mp
from benchmarks.shared.checkpoint import write_checkpoint
from benchmarks.shared.options import parser
from multipatch_jax.nn import linear
from multipatch_jax.nn.attention import plain
from multipatch_reference import distance, image_features

BLOCKS = (256, 384, 512, 16384)  # terms in a block; no sum has more terms than the last, so it has one accumulator
TURNS = 5


def main() -> None:
    parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder))
        config, params = mp.from_pretrained(folder)
    compute = mp.Compute(encoder="flax")  # the compiled encoder has blocks of its own
    tiles = mp.tile_image_host(data.chelsea(), config.tiling)[-1:]
    pixels = np.asarray(mp.image.normalize(jax.numpy.asarray(tiles)))
    _, tokens32 = image_features(model, pixels)
    _, tokens64 = image_features(model.double(), pixels)
    theirs = distance(tokens32, tokens64)
    print(f"the reference in float32 is {theirs:.1e} from float64")
    for block in BLOCKS:
        jax.clear_caches()
        with mock.patch.object(linear, "BLOCK", block), mock.patch.object(plain, "BLOCK", block):
            tokens = np.asarray(mp.encode_tiles(params, tiles, config=config, compute=compute))
        seconds = []
        for _ in range(TURNS):
            start = time.perf_counter()
            mp.encode_tiles(params, tiles, config=config, compute=compute).block_until_ready()
            seconds.append(time.perf_counter() - start)
        ratio = distance(tokens, tokens64) / theirs
        print(f"blocks of {block:<5}  {ratio:5.2f} x as far   {statistics.median(seconds):5.2f} s a tile", flush=True)


if __name__ == "__main__":
    main()
