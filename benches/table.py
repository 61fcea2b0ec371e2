#!/usr/bin/env python3
"""The tables of the README from results files, so that no number in them was typed.

    benches/table.py [CSV]                     print it
    benches/table.py [CSV] --write README.md   put its headlines between its marks: <!-- results --> and <!-- /results --> for what
                                               `compare` recorded, <!-- gpu results --> and <!-- /gpu results --> for `cuda`
    benches/table.py [CSV] --check README.md   exit with 1 unless it stands there; without CSV, all tables there are

Without CSV, --check takes the files that the tables name, and the others the newest under benches/results, of those with
PyTorch as it comes.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CPU, GPU = "results", "gpu results"
NONE = "n/a"
# What the README shows of a results file of `compare`.
HEADLINES = [
    "rkd-distance-512x512",
    "rkd-angle-512x512",
    "rrd-256x128-k16384-own",
    "info-nce-256x128-k16384",
    "kd-kl-256x32000",
]


def newest():
    """By date, which is the file's name."""
    files = sorted(RESULTS.glob("*/????-??-??.csv"), key=lambda path: (path.name, path.parent.name))
    if not files:
        sys.exit(f"table.py: expected a results file under {RESULTS}, got none")
    of_that_day = [path for path in files if path.name == files[-1].name]
    if len(of_that_day) > 1:
        sys.exit("table.py: say which: " + ", ".join(map(str, of_that_day)))
    return files[-1]


def between(text, marks, name):
    """What comes before the table with these marks, the table, and what comes after it; None where there are no such marks."""
    head, begin, rest = text.partition(f"<!-- {marks} -->")
    table, end, tail = rest.partition(f"<!-- /{marks} -->")
    if begin and not end:
        sys.exit(f"table.py: expected <!-- /{marks} --> in {name} after <!-- {marks} -->, got none")
    return (head + begin, table, end + tail) if begin else None


def named_in(table, name):
    """The file that a table says it is from."""
    found = re.search(r"\]\((benches/results/[^)]*\.csv)\)", table)
    if not found:
        sys.exit(f"table.py: expected the table in {name} to name its results file, got no such name")
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


def share(of_one):
    return NONE if of_one == NONE else f"{100 * float(of_one):.0f} %"


def speed(row):
    """In what bounds the loss."""
    value, unit = float(row["throughput"]), row["throughput_unit"]
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}"


# Heading and cell, of what `compare` records and of what `cuda` does.
COLUMNS = {
    CPU: [
        ("case", lambda row: f"`{row['case']}`"),
        ("relata", lambda row: duration(row["ours_p50_s"])),
        ("PyTorch", lambda row: duration(row["torch_p50_s"])),
        ("PyTorch / relata", lambda row: times(ratio(row["torch_p50_s"], row["ours_p50_s"]))),
        ("memory, PyTorch / relata", lambda row: times(ratio(row["torch_peak_bytes"], row["ours_peak_bytes"]))),
    ],
    GPU: [
        ("case", lambda row: f"`{row['case']}` {row['dtype']}" + (", half" if row.get("weights") == "half" else "")),
        ("relata", lambda row: duration(row["graph_p50_s"])),
        ("of the floor", lambda row: share(row["share_of_floor"])),
        ("throughput", speed),
        ("eager / relata", lambda row: times(ratio(row["torch_eager_p50_s"], row["graph_p50_s"]))),
        ("compiled / relata", lambda row: times(ratio(row["torch_compiled_p50_s"], row["graph_p50_s"]))),
        ("attention / relata", lambda row: times(ratio(row["torch_attention_p50_s"], row["graph_p50_s"]))),
        ("memory, eager / relata", lambda row: times(ratio(row["torch_peak_bytes"], row["ours_peak_bytes"]))),
    ],
}


def caption(kind, run, path):
    source = f"[{path.name}](benches/results/{path.parent.name}/{path.name})"
    if kind == GPU:
        where = f"{run['gpu']}, driver {run['driver']}, CUDA {run['toolkit']}, PyTorch {run['torch']}, revision {run['revision']}"
        return f"Medians for loss and gradient in a CUDA graph, inputs in no cache; {where}; {source}."
    return f"Medians for loss and gradient, {run['dtype']}; {run['device']}, {run['threads']} threads, PyTorch {run['torch']}; {source}."


def table(path, headlines=False):
    """Which of the two it is, and the table; of `compare`'s, on request, the headlines alone."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"table.py: expected results in {path}, got none")
    kind = GPU if "gpu" in rows[0] else CPU
    if kind == CPU and headlines:
        rows = [row for row in rows if row["case"] in HEADLINES]
    columns = COLUMNS[kind]
    lines = [[name for name, _ in columns], ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[cell(row) for _, cell in columns] for row in rows]
    return kind, "\n".join([caption(kind, rows[0], path), ""] + [f"| {' | '.join(line)} |" for line in lines])


def write(readme, path):
    kind, text = table(path, headlines=True)
    parts = between(readme.read_text(encoding="utf-8"), kind, readme)
    if parts is None:
        sys.exit(f"table.py: expected <!-- {kind} --> in {readme}, got none")
    readme.write_text(f"{parts[0]}\n{text}\n{parts[2]}", encoding="utf-8")


def check(readme, path):
    text = readme.read_text(encoding="utf-8")
    checked = 0
    for kind in (CPU, GPU):
        parts = between(text, kind, readme)
        if parts is None:
            continue
        source = path or named_in(parts[1], readme)
        of_kind, wanted = table(source, headlines=True)
        if of_kind != kind and path:
            continue
        checked += 1
        if of_kind != kind or parts[1] != f"\n{wanted}\n":
            sys.exit(f"table.py: the table of {kind} in {readme} is not that of {source}; see --write")
    if not checked:
        sys.exit(f"table.py: expected a table in {readme}, got none")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", nargs="?", type=Path)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="README")
    action.add_argument("--check", type=Path, metavar="README")
    args = parser.parse_args()
    if args.check:
        check(args.check, args.csv)
    elif args.write:
        write(args.write, args.csv or newest())
    else:
        print(table(args.csv or newest())[1])


if __name__ == "__main__":
    main()
