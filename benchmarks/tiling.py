"""Seconds from a 12-megapixel photograph's pixels to its tiles: `python -m benchmarks.tiling` (needs the `test` extra).

Us on the host (Pillow, threads) and on the CPU as a device (jitted), against the reference's PIL image processor. Each
in a process of its own, taking turns; medians, and ratios to the reference.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import turns


def reference(folder: Path) -> Callable[[], object]:
    import multipatch_jax as mp
    from multipatch_reference import image_processor

    image, processor = np.load(folder / "photo.npy"), image_processor(mp.presets.SMOLVLM_256M)
    return lambda: processor(image, input_data_format="channels_last", return_tensors="np")


def host(folder: Path) -> Callable[[], object]:
    import multipatch_jax as mp

    image = np.load(folder / "photo.npy")
    return lambda: mp.tile_image_host(image)


def device(folder: Path) -> Callable[[], object]:
    import multipatch_jax as mp

    image = np.load(folder / "photo.npy")
    return lambda: mp.tile_image(image).block_until_ready()


SYSTEMS = {"reference (PIL)": reference, "tile_image_host": host, "tile_image, CPU": device}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return turns.work(SYSTEMS, args.worker[0], Path(args.worker[1]))
    from skimage import data

    for height, width in ((3000, 4000), (4000, 3000)):
        with tempfile.TemporaryDirectory() as name:
            photo = Image.fromarray(data.coffee()).resize((width, height), Image.Resampling.BICUBIC)
            np.save(Path(name) / "photo.npy", np.asarray(photo))
            times = turns.take_turns("benchmarks.tiling", SYSTEMS, Path(name), args.rounds)
        print(f"{height} x {width}")
        for system in SYSTEMS:
            share = turns.ratio(times, system, "reference (PIL)")
            print(f"  {system:<18} {statistics.median(times[system]):6.3f} s   {share:5.2f} of the reference")


if __name__ == "__main__":
    main()
