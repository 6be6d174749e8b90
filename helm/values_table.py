"""Writes what follows from values.yaml: the table of values in helm/annulus/README.md, from its
comments, and files/defaults.yaml, from which templates fill values that are left blank.

`values_table.py` says whether both are what they should be; `values_table.py --write` writes them.
"""

import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent / "annulus"
BEGIN = "<!-- made of values.yaml by helm/values_table.py --write -->\n"
KEY = re.compile(r"( *)([A-Za-z][A-Za-z0-9]*):")


def rows(text):
    """(path, default, description) of every value with a comment, in their order."""
    values = yaml.safe_load(text)
    comment, path = [], []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped[5:]]
        elif stripped.startswith("#") and comment:
            comment.append(stripped[1:].strip())
        elif key := KEY.match(line):
            depth = len(key[1]) // 2
            path = [*path[:depth], key[2]]
            if comment:
                default = values
                for name in path:
                    default = default[name]
                yield ".".join(path), default, " ".join(comment)
            comment = []


def table(text):
    lines = ["| value | default | |", "|---|---|---|"]
    for path, default, description in rows(text):
        shown = yaml.safe_dump(default, default_flow_style=True, width=1000, sort_keys=False)
        shown = shown.removesuffix("...\n").strip()
        cells = (f"`{path}`", f"`{shown}`", description.replace("|", "\\|"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def defaults(text):
    lines = ["# made of values.yaml by helm/values_table.py --write"]
    for path, default, _ in rows(text):
        shown = yaml.safe_dump(
            {path: default}, default_flow_style=True, width=1000, sort_keys=False
        )
        lines.append(shown.strip().removeprefix("{").removesuffix("}"))
    return "\n".join(lines) + "\n"


def made():
    """(file, text that it should have)."""
    values = (CHART / "values.yaml").read_text()
    readme = CHART / "README.md"
    text = readme.read_text()
    yield readme, text[: text.index(BEGIN) + len(BEGIN)] + table(values)
    yield CHART / "files" / "defaults.yaml", defaults(values)


def main(arguments):
    status = 0
    for file, text in made():
        if arguments == ["--write"]:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            print(f"{file}: is not values.yaml's; expected", file=sys.stderr)
            print("python3 helm/values_table.py --write, to make it anew", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
