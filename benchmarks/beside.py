"""Measures this checkout beside an older commit: `python -m benchmarks.beside COMMIT`.

Needs the `test` extra and git. Builds the commit in a temporary folder. Both sides run the same script, each in
processes of its own that take turns, on a CPU, with SmolVLM-256M's tower and connector and random weights in float32:
the seconds of one tile, of a 12-megapixel JPEG to its tokens, of a stream of three JPEGs of 5 tiles, and of import,
load and `warmup` in new processes that find their programs in JAX's persistent cache. `benchmarks.compiled` compares
the compiled programs.

Prints medians, and the median ratio of a round to the older commit. Asserts nothing, because the machine is shared.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.shared import turns
from benchmarks.shared.checkpoint import make_checkpoint
from benchmarks.shared.older import older_checkout, run_with, variables_of
from benchmarks.shared.options import parser
from benchmarks.shared.photo import photograph
from benchmarks.shared.processes import ROOT

WORKER = Path(__file__).parent / "shared" / "beside_worker.py"
STEPS = ("import and load", "warmup, cached programs", "import, load and warmup")


def report(name: str, times: dict[str, list[float]]) -> None:
    """Prints the medians of both sides, and the ratio."""
    old, new = times
    medians = [statistics.median(times[side]) for side in (old, new)]
    print(f"{name:<28} {medians[0]:8.3f} s {medians[1]:8.3f} s {turns.ratio(times, new, old):8.3f} x", flush=True)


def main() -> int:
    """0 when measured, 2 when the sides cannot be compared."""
    options = parser(__doc__)
    options.add_argument("commit", metavar="COMMIT", help="any name that git knows: a hash, a tag, HEAD~3")
    options.add_argument("--rounds", type=int, default=6, help="turns of each side, and new processes")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            sides = {args.commit: older_checkout(args.commit, folder / "old"), "this checkout": ROOT}
        except ValueError as error:
            print(f"beside: {error}", file=sys.stderr)
            return 2
        make_checkpoint(folder / "model")
        np.save(folder / "tile.npy", np.asarray(photograph(512, 512)))
        photograph(3000, 4000).save(folder / "photo.jpg", quality=92)
        photograph(512, 2048).save(folder / "wide.jpg", quality=92)
        print(f"{'':<28} {args.commit:>10} {'this checkout':>10}")
        variables = {side: variables_of(checkout) for side, checkout in sides.items()}
        for what in ("tile", "photo", "stream"):
            commands = {side: [sys.executable, "-P", str(WORKER), "turns", what, name] for side in sides}
            report(f"seconds a {what}", turns.take_turns_of(commands, variables, args.rounds))
        steps: dict[str, dict[str, list[float]]] = {step: {side: [] for side in sides} for step in STEPS}
        caches = {side: f"{name}/cache{number}" for number, side in enumerate(sides)}
        for start in range(args.rounds + 1):
            for side in sorted(sides, reverse=bool(start % 2)):  # in turn first, as the disk's cache favours the second
                seconds = map(float, run_with(sides[side], WORKER, "ready", name, caches[side]).split())
                for step, value in zip(STEPS, seconds, strict=True):
                    if start:  # the first process fills the cache
                        steps[step][side].append(value)
        for step, times in steps.items():
            report(step, times)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
