"""Measures the seconds from a 12-megapixel photograph's pixels to its tiles: `python -m benchmarks.tiling`.

Needs the `test` extra. Compares `tile_image_host` (Pillow, threads) and `tile_image` with the CPU as its device
(jitted) with the reference's PIL image processor. Each has its own process and they take turns; prints medians, and
ratios to the reference.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.shared import turns
from benchmarks.shared.options import turns_parser
from benchmarks.shared.turns import System, Turn


def reference(folder: Path) -> Turn:
    import multipatch_jax as mp
    from multipatch_reference import image_processor

    image, processor = np.load(folder / "photo.npy"), image_processor(mp.presets.SMOLVLM_256M)
    return lambda: processor(image, input_data_format="channels_last", return_tensors="np")


def host(folder: Path) -> Turn:
    import multipatch_jax as mp

    image = np.load(folder / "photo.npy")
    return lambda: mp.tile_image_host(image)


def device(folder: Path) -> Turn:
    import multipatch_jax as mp

    image = np.load(folder / "photo.npy")
    return lambda: mp.tile_image(image).block_until_ready()


SYSTEMS: dict[str, System] = {"reference (PIL)": reference, "tile_image_host": host, "tile_image, CPU": device}


def main() -> None:
    args = turns_parser(__doc__, rounds=15).parse_args()
    if args.worker:
        return turns.work(SYSTEMS, *args.worker)
    from benchmarks.shared.photo import photograph  # no system needs what it imports

    for height, width in ((3000, 4000), (4000, 3000)):
        with tempfile.TemporaryDirectory() as name:
            np.save(Path(name) / "photo.npy", np.asarray(photograph(height, width)))
            times = turns.take_turns("benchmarks.tiling", SYSTEMS, Path(name), args.rounds)
        print(f"{height} x {width}")
        for system in SYSTEMS:
            share = turns.ratio(times, system, "reference (PIL)")
            print(f"  {system:<18} {statistics.median(times[system]):6.3f} s   {share:5.2f} of the reference")


if __name__ == "__main__":
    main()
