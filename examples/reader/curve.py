"""Draw the curves of a training run: the loss of each stage, of one seed or of several.

python -m examples.reader.curve --out curve.png reader-run other-seed
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from examples.reader.stages import STAGES


def losses(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the losses of a stage; a step that was made again after a stop counts once."""
    with file.open(newline="") as rows:
        found = {int(row[0]): float(row[1]) for row in csv.reader(rows)}
    return np.array(sorted(found)), np.array([found[step] for step in sorted(found)])


def smooth(values: np.ndarray, width: int = 25) -> np.ndarray:
    """Return the mean of each value and those before it, at most `width`."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def main(argv: list[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture to write")
    args = parser.parse_args(argv)
    names = [name for name in STAGES if any((run / f"{name}.csv").is_file() for run in args.runs)]
    figure = Figure(figsize=(4 * len(names), 3), dpi=100, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for run in args.runs:
            if (run / f"{name}.csv").is_file():
                steps, values = losses(run / f"{name}.csv")
                axes.plot(steps, smooth(values), linewidth=1.2, label=run.name)
        axes.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
