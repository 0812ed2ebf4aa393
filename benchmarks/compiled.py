"""Compares what XLA compiles from an older commit and from this checkout: `python -m benchmarks.compiled COMMIT`.

Needs the `test` extra and git. Builds COMMIT in a temporary folder. Each side compiles its programs of `encode_tiles`
and `encode_image` on a CPU, with the shapes of SmolVLM-256M and a tower of 2 layers. The settings are float32 by
default (the compiled encoder), float32 with XLA alone, and bfloat16. No program runs. XLA counts a loop's body once, so
compare the figures, and do not read them as the cost of a call.

COMMIT must have `mp.encode.lower_encode_tiles`, or the programs of 7ccde8e under their private names. The commits from
703b828 to 573d815 have neither.

Prints flops, bytes accessed and temporary memory of each program on both sides, and the ratio to the older commit.
Exits with 1 if a ratio is over 1.03, and with 2 if the sides cannot be compared.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.shared.older import older_checkout, run_with
from benchmarks.shared.options import parser
from benchmarks.shared.processes import ROOT

LIMIT = 1.03
UNITS = {"flops": (1e9, "GFLOP"), "bytes accessed": (1e6, "MB"), "temp memory": (1e6, "MB")}
Figures = dict[str, dict[str, dict[str, float]]]  # settings -> program -> figure -> value


def figures(checkout: Path) -> Figures:
    """What XLA says of the programs of a checkout.

    Raises:
      CalledProcessError: a program was not compiled; the process has printed why.
    """
    return json.loads(run_with(checkout, Path(__file__).parent / "shared" / "compiled_cases.py", checkout))


def ratio(old: float, new: float) -> float:
    if old:
        return new / old
    return math.inf if new else 1.0


def report(commit: str, old: Figures, new: Figures) -> list[str]:
    """Prints the tables, and returns what is over the limit."""
    over = []
    columns = "".join(f"{f'{what}, {unit}':^26}" for what, (_, unit) in UNITS.items())
    for settings, programs in old.items():
        print(f"\n{settings:<35}{columns}".rstrip())
        print(f"{'':<35}" + f"{commit[:8]:>9}{'here':>9}{'ratio':>8}" * len(UNITS))
        for program, before in programs.items():
            line, after = f"{program:<35}", new[settings][program]
            for what, (scale, _) in UNITS.items():
                share = ratio(before[what], after[what])
                line += f"{before[what] / scale:9.2f}{after[what] / scale:9.2f}{share:8.4f}"
                if share > LIMIT:
                    over.append(f"{program}, {settings}: {what} is {share:.4f} x")
            print(line)
    return over


def main() -> int:
    """0 when no ratio is over the limit, 1 when one is, 2 when the sides cannot be compared."""
    options = parser(__doc__)
    options.add_argument("commit", metavar="COMMIT", help="any name that git knows: a hash, a tag, HEAD~3")
    commit = options.parse_args().commit
    with tempfile.TemporaryDirectory() as name:
        try:
            old, new = figures(older_checkout(commit, Path(name) / "old")), figures(ROOT)
        except (ValueError, subprocess.CalledProcessError) as error:
            print(f"compiled: {error}", file=sys.stderr)
            return 2
    over = report(commit, old, new)
    print("\n" + ("\n".join(over) if over else f"No ratio is over {LIMIT}."))
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
