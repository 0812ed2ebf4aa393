"""Shows that this checkout gives the same bits as an older commit: `python -m benchmarks.same_bits COMMIT`.

Needs the `test` extra and git. Extracts COMMIT into a temporary folder, and builds the compiled encoder there. Makes
one random checkpoint with the shapes of SmolVLM-256M and a tower of 3 layers, and a few images. Then runs the same
cases on a CPU in two processes, one with the old code and one with this checkout's, and compares every bit of the
results. Loads the checkpoint in float32 and in bfloat16. Takes some minutes.

Prints a table. Exits with 1 if anything differs, and with 2 if the sides cannot be compared. After a change in
`native/`, build this checkout's encoder first: `python setup.py build_ext --inplace`.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.shared.checkpoint import make_checkpoint
from benchmarks.shared.older import older_checkout, run_with
from benchmarks.shared.options import parser
from benchmarks.shared.processes import ROOT

LAYERS = 3
SIZES = {  # name: (height, width), each of few tiles
    "wide": (300, 1200),  # bucket of 2048
    "tall": (800, 260),  # bucket of 1024
    "large": (700, 2600),  # bucket of 4096
    "long": (240, 4300),  # larger than every bucket, so tiled on the host
}


def make_inputs(folder: Path) -> None:
    """Writes the checkpoint and the images."""
    from benchmarks.shared.photo import photograph

    make_checkpoint(folder / "model", LAYERS)
    for name, (height, width) in SIZES.items():
        np.save(folder / f"{name}.npy", np.asarray(photograph(height, width)))
    photograph(3000, 4000).save(folder / "photo.jpg", quality=92)  # 13 tiles
    transparent = photograph(200, 800).convert("RGBA")
    transparent.putalpha(photograph(200, 800).convert("L"))
    transparent.save(folder / "alpha.png")


def run_cases(checkout: Path, folder: Path, output: Path) -> dict[str, np.ndarray]:
    """The bits of every case, computed by the code of a checkout.

    Raises:
      CalledProcessError: a case failed; the process has printed why.
    """
    script = Path(__file__).parent / "shared" / "same_bits_cases.py"
    run_with(checkout, script, checkout, folder, output)
    with np.load(output) as arrays:
        return dict(arrays)


def compare(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """(case with its dtypes, what differs) for every case of either side; nothing differs where the second is empty."""

    def difference(name: str) -> str:
        if name not in new or name not in old:
            return "only in the old commit" if name in old else "only in this checkout"
        if old[name].shape != new[name].shape:
            return f"shape {old[name].shape} became {new[name].shape}"
        differing = np.count_nonzero(old[name] != new[name])
        return f"{differing:,} of {old[name].size:,} values differ" if differing else ""

    return [(name, difference(name)) for name in old | new]


def run_both(commit: str) -> list[tuple[str, str]]:
    """Makes the old checkout and the inputs, runs both sides and compares them."""
    with tempfile.TemporaryDirectory() as name:
        folder, old = Path(name), Path(name) / "old"
        older_checkout(commit, old)
        make_inputs(folder)
        sides = []
        for which, checkout in ((commit, old), ("this checkout", ROOT)):
            start = time.perf_counter()
            sides.append(run_cases(checkout, folder, folder / f"{len(sides)}.npz"))
            print(f"{which}: {len(sides[-1])} arrays in {time.perf_counter() - start:.0f} s", flush=True)
    return compare(*sides)


def main() -> int:
    """0 when every bit is equal, 1 when one is not, 2 when the sides cannot be compared."""
    options = parser(__doc__)
    options.add_argument("commit", metavar="COMMIT", help="any name that git knows: a hash, a tag, HEAD~3")
    commit = options.parse_args().commit
    try:
        rows = run_both(commit)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"same_bits: {error}", file=sys.stderr)
        return 2
    print(f"\n{'case':<54} {'loaded in':<9} {'result':<9} bits")
    for key, difference in rows:
        case, dtype, result = key.split("|")
        print(f"{case:<54} {dtype:<9} {result:<9} {difference or 'equal'}")
    differing = sum(bool(difference) for _, difference in rows)
    if differing:
        print(f"\n{differing} of {len(rows)} arrays differ from those of {commit}.")
    else:
        print(f"\nAll {len(rows)} arrays are equal to those of {commit}, bit for bit.")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
