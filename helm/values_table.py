"""Writes the table of values into helm/annulus/README.md from the comments of values.yaml.

`values_table.py` says whether the table is what it should be; `values_table.py --write` writes it.
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


def main(arguments):
    readme = CHART / "README.md"
    text = readme.read_text()
    head = text[: text.index(BEGIN) + len(BEGIN)]
    made = head + table((CHART / "values.yaml").read_text())
    if arguments == ["--write"]:
        readme.write_text(made)
    elif text != made:
        print("helm/annulus/README.md: the table is not values.yaml's; expected", file=sys.stderr)
        print("python3 helm/values_table.py --write, to make it anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
