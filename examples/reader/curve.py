"""Draw the loss of each stage of a training run, or of several runs, and print where it begins and ends.

python -m examples.reader.curve --out curve.png reader-run other-seed
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from examples.reader.stages import STAGES

LAST = 50  # steps whose mean loss is printed


def losses(file: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the steps and losses of a stage, and the minutes it took; a step made again after a stop counts once."""
    with file.open(newline="") as lines:
        rows = [(int(row[0]), float(row[1]), float(row[3])) for row in csv.reader(lines)]
    found = {step: loss for step, loss, _ in rows}
    seconds = np.array([row[2] for row in rows])
    ends = np.append(seconds[1:] < seconds[:-1], True)  # of each process: the next one counts from 0
    return np.array(sorted(found)), np.array([found[step] for step in sorted(found)]), float(seconds[ends].sum()) / 60


def smooth(values: np.ndarray, width: int = 25) -> np.ndarray:
    """Return the mean of each value and those before it, at most `width`."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def main(argv: list[str] | None = None) -> None:
    """Write the picture, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture to write")
    args = parser.parse_args(argv)
    names = [name for name in STAGES if any((run / f"{name}.csv").is_file() for run in args.runs)]
    figure = Figure(figsize=(4 * len(names), 3), dpi=100, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for run in args.runs:
            if (run / f"{name}.csv").is_file():
                steps, values, minutes = losses(run / f"{name}.csv")
                print(
                    f"{run.name} {name:<8} {steps[-1]:5} steps in {minutes:4.1f} minutes, "
                    f"loss {values[0]:.2f} at first and {values[-LAST:].mean():.3f} over the last {LAST} steps"
                )
                axes.plot(steps, smooth(values), linewidth=1.2, label=run.name)
        axes.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
