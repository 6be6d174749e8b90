#!/usr/bin/env python3
"""Turns result files into pictures: plot.py [--out-dir DIR] FILE…

A file is CSV with a header, or JSON lines, as annulus_scale, annulus_bench, annulus_bench --kernels,
annulus quality and the scripts of bench/gpu write them; its columns say which. Lines that begin with
# are notes. Each gives FILE's name with .svg and .png, in DIR or beside it. A file that cannot be
read is named in one line, exit 2.
"""

import argparse
import csv
import json
import math
import os
import sys

import figure_bench
import figure_gpu
import figure_kernels
import figure_quality
import figure_scale

FIGURES = (figure_scale, figure_bench, figure_kernels, figure_gpu, figure_quality)


class BadFile(Exception):
    """What is wrong with a file, in one line."""


def numbers(row):
    """The row with numbers, and text that is one, as floats."""
    read = {}
    for name, value in row.items():
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            try:
                value = float(value)
            except ValueError:
                pass
        read[name] = value
    return read


def read_rows(path):
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: {error}") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise BadFile(f"{path}: no rows; expected CSV or JSON lines")
    rows = []
    if lines[0].startswith("{"):
        for number, line in enumerate(lines, 1):
            try:
                rows.append(numbers(json.loads(line)))
            except (json.JSONDecodeError, AttributeError) as error:
                raise BadFile(f"{path}: row {number}: {error}") from error
        return rows
    reader = csv.DictReader(lines, strict=True)
    try:
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                fields = len(row.pop(None, [])) + sum(value is not None for value in row.values())
                raise BadFile(f"{path}: row {number}: {fields} fields; "
                              f"expected {len(reader.fieldnames)}")
            rows.append(numbers(row))
    except csv.Error as error:
        raise BadFile(f"{path}: {error}") from error
    if not rows:
        raise BadFile(f"{path}: no rows below the header")
    return rows


def figure_of(path, rows):
    """The figure whose columns these rows have, each of its kind."""
    def missing(figure):
        return [name for name in figure.COLUMNS if any(name not in row for row in rows)]
    figure = min(FIGURES, key=lambda figure: len(missing(figure)))
    if missing(figure):
        raise BadFile(f"{path}: no {', '.join(missing(figure))}; expected the columns of "
                      f"{' or '.join(f.PROGRAM for f in FIGURES)}")
    for number, row in enumerate(rows, 1):
        for name, kind in figure.COLUMNS.items():
            value = row[name]
            if value in ("", None) and name in getattr(figure, "OPTIONAL", ()):
                continue
            if not isinstance(value, kind):
                expected = "a number" if kind is float else "text"
            elif name in figure.POSITIVE and value <= 0:
                expected = "more than 0"
            elif kind is float and not math.isfinite(value):
                expected = "a finite number"
            else:
                continue
            raise BadFile(f"{path}: row {number}: {name}: {value!r}; expected {expected}")
    return figure


def main():
    parser = argparse.ArgumentParser(prog="plot", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--out-dir", metavar="DIR", help="where pictures go (beside each file)")
    arguments = parser.parse_args()
    try:
        for path in arguments.files:
            rows = read_rows(path)
            figure = figure_of(path, rows).draw(rows)
            stem = os.path.splitext(path)[0]
            if arguments.out_dir:
                stem = os.path.join(arguments.out_dir, os.path.basename(stem))
            # No date in the SVG: the same rows give the same file.
            for extension, metadata in (("svg", {"Date": None}), ("png", None)):
                try:
                    figure.savefig(f"{stem}.{extension}", metadata=metadata)
                except OSError as error:
                    raise BadFile(f"{stem}.{extension}: {error}") from error
                print(f"{stem}.{extension}")
    except BadFile as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
