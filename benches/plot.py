#!/usr/bin/env python3
"""A picture of a results file: the time of the RKD losses against the batch, relata's, PyTorch's and, on a GPU, the floor.

    benches/plot.py CSV [SVG]

SVG is the CSV's name with another ending unless given. Needs matplotlib. Takes what `compare` records and what `cuda` does.
"""

import argparse
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of backend

# The same bytes for the same results.
plt.rcParams.update({"svg.hashsalt": "relata", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

LOSSES = {"rkd-distance": "RKD distance", "rkd-angle": "RKD angle"}
# Column, name, colour, line; those of `compare`, then those of `cuda`.
SERIES = [
    ("ours_p50_s", "relata", "#c2410c", "-"),
    ("torch_p50_s", "PyTorch", "#475569", "-"),
    ("graph_p50_s", "relata", "#c2410c", "-"),
    ("torch_eager_p50_s", "PyTorch eager", "#475569", "-"),
    ("torch_compiled_p50_s", "torch.compile", "#94a3b8", "-"),
    ("floor_s", "floor of the GPU", "#000000", ":"),
]


def dim(rows, loss):
    """The commonest: of the cases that differ by N alone."""
    dims = [row["student_dim"] for row in rows if row["loss"] == loss]
    return max(dims, key=dims.count)


def points(rows, loss, column):
    """(N, seconds) in f32, without those that were not measured."""
    wanted = {"loss": loss, "dtype": "f32", "student_dim": dim(rows, loss)}
    return sorted(
        (int(row["rows"]), float(row[column]))
        for row in rows
        if wanted.items() <= row.items() and row.get(column, "n/a") not in ("", "n/a")
    )


def panel(axes, rows, loss, title):
    for column, name, colour, line in SERIES:
        if line_points := points(rows, loss, column):
            n, seconds = zip(*line_points)
            axes.loglog(n, seconds, line, color=colour, marker="o" if line == "-" else None, markersize=4, label=name)
    ticks = sorted({n for column, *_ in SERIES for n, _ in points(rows, loss, column)})
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.grid(color="#e2e8f0")
    axes.set(title=f"{title}, D = {dim(rows, loss)}", xlabel="batch N", ylabel="seconds, loss and gradient")
    axes.legend(frameon=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("svg", nargs="?", type=Path)
    args = parser.parse_args()
    with open(args.csv, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [loss for loss in LOSSES if any(row["loss"] == loss for row in rows)]
    if not losses:
        sys.exit(f"plot.py: expected results of {' or '.join(LOSSES)} in {args.csv}, got none")
    figure, panels = plt.subplots(1, len(losses), figsize=(4.2 * len(losses), 3.4), squeeze=False, layout="constrained")
    for axes, loss in zip(panels[0], losses):
        panel(axes, rows, loss, LOSSES[loss])
    run = rows[0]
    where = run.get("gpu") or f"{run['device']}, {run['threads']} threads"
    figure.suptitle(f"{where}; PyTorch {run['torch']}; f32, medians", fontsize=9)
    figure.savefig(args.svg or args.csv.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
