#!/usr/bin/env python3
"""The table of the README from a results file, so that no number in it was typed.

    benches/table.py [CSV]                     print it
    benches/table.py [CSV] --write README.md   put it between <!-- results --> and <!-- /results -->
    benches/table.py [CSV] --check README.md   exit with 1 unless it stands there

Without CSV, the file that the table names for --check, and else the newest under benches/results, of those with PyTorch as
it comes.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
NONE = "n/a"


def newest():
    """By date, which is the file's name."""
    files = sorted(RESULTS.glob("*/????-??-??.csv"), key=lambda path: (path.name, path.parent.name))
    if not files:
        sys.exit(f"table.py: expected a results file under {RESULTS}, got none")
    of_that_day = [path for path in files if path.name == files[-1].name]
    if len(of_that_day) > 1:
        sys.exit("table.py: say which: " + ", ".join(map(str, of_that_day)))
    return files[-1]


def named_in(readme):
    """The file that the README's table says it is from."""
    found = re.search(r"\]\((benches/results/[^)]*\.csv)\)", readme.read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"table.py: expected the table in {readme} to name its results file, got no such name")
    return RESULTS.parent.parent / found.group(1)


def duration(seconds):
    """Three digits, in the unit that suits."""
    if seconds == NONE:
        return NONE
    value, unit = float(seconds), "s"
    for smaller in ("ms", "µs"):
        if value < 1:
            value, unit = value * 1000, smaller
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def times(ratio):
    """Two digits: more is noise."""
    if ratio is None:
        return NONE
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def ratio(numerator, denominator):
    if NONE in (numerator, denominator) or float(denominator) == 0:
        return None
    return float(numerator) / float(denominator)


def cells(row):
    return [
        f"`{row['case']}`",
        duration(row["ours_p50_s"]),
        duration(row["torch_p50_s"]),
        times(ratio(row["torch_p50_s"], row["ours_p50_s"])),
        times(ratio(row["torch_peak_bytes"], row["ours_peak_bytes"])),
    ]


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"table.py: expected results in {path}, got none")
    head = ["case", "relata", "PyTorch", "PyTorch / relata", "memory, PyTorch / relata"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)] + [cells(row) for row in rows]
    run = rows[0]
    where = f"{run['device']}, {run['threads']} threads, PyTorch {run['torch']}"
    source = f"benches/results/{path.parent.name}/{path.name}"
    what = f"Medians for loss and gradient, {run['dtype']}; {where}; [{path.name}]({source})."
    return "\n".join([what, ""] + [f"| {' | '.join(line)} |" for line in lines])


def replaced(text, table, name):
    """`text` with `table` between the marks."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"table.py: expected {BEGIN} and {END} in {name}, got no such pair")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", nargs="?", type=Path)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="README")
    action.add_argument("--check", type=Path, metavar="README")
    args = parser.parse_args()
    path = args.csv or (named_in(args.check) if args.check else newest())
    text = table(path)
    readme = args.write or args.check
    if readme is None:
        print(text)
        return
    old = readme.read_text(encoding="utf-8")
    new = replaced(old, text, readme)
    if args.write:
        readme.write_text(new, encoding="utf-8")
    elif old != new:
        sys.exit(f"table.py: the table in {readme} is not that of {path}; see --write")


if __name__ == "__main__":
    main()
