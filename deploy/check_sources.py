"""Checks what clang-format cannot: that includes point down, and that sources stay small and clean.

Prints one line per finding, `file:line: field: value; expected …`, and exits 1 if there is any.
"""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE_FOLDERS = ("attention", "base", "bench", "comm", "python", "runtime", "sharding", "tests")
CODE = (".h", ".cc", ".cu", ".cuh")
LINES_MAX = 400
FUNCTION_LINES_MAX = 69
COLUMNS_MAX = 100

# The client's public headers, named in includes as its users name them.
PUBLIC = "base/api"
PUBLIC_INCLUDE = re.compile(r'\s*#\s*include (<[a-z_]+>|"(absl|annulus)/[^"]+")')

# What a folder may include beside itself, base and the public headers. A folder not named here is a part of its parent.
VALUES = ("attention", "sharding")
LAYERS = {
    PUBLIC: (),
    "base": (PUBLIC,),
    "attention": (),
    "attention/cpu": ("attention",),
    "attention/cuda": ("attention",),
    "attention/patterns": ("attention",),
    "attention/reference": ("attention",),
    "attention/select": ("attention", "attention/cpu", "attention/patterns"),
    "comm": (),
    "sharding": ("attention",),
    "runtime": VALUES,
    "runtime/fields": (*VALUES, "runtime"),
    "runtime/identity": (*VALUES, "runtime"),
    "runtime/service": (*VALUES, "runtime", "runtime/fields", "runtime/identity"),
    "runtime/context": (*VALUES, "runtime", "runtime/fields"),
    "runtime/engine": (*VALUES, "attention/select", "comm"),
    "runtime/store": (*VALUES, "attention/select", "runtime", "runtime/context"),
    "runtime/protocol/cluster": (*VALUES, "comm", "runtime", "runtime/context", "runtime/fields"),
    "runtime/protocol/public": (
        *VALUES, "runtime", "runtime/fields", "runtime/identity", "runtime/service"),
    "runtime/worker": (
        *VALUES, "comm", "runtime", "runtime/context", "runtime/engine", "runtime/store",
        "runtime/protocol/cluster"),
    "runtime/coordinator": (
        *VALUES, "comm", "runtime", "runtime/context", "runtime/engine", "runtime/identity",
        "runtime/service", "runtime/protocol/cluster"),
    "runtime/http": ("runtime", "runtime/protocol/public"),
    "runtime/telemetry": (
        *VALUES, "comm", "runtime", "runtime/http", "runtime/identity", "runtime/service",
        "runtime/protocol/public"),
    "runtime/server": (
        *VALUES, "comm", "runtime", "runtime/identity", "runtime/service",
        "runtime/protocol/public", "runtime/worker"),
    # The client holds a whole service for use within one process.
    "runtime/client": (
        *VALUES, "comm", "runtime", "runtime/context", "runtime/coordinator", "runtime/fields",
        "runtime/protocol/public", "runtime/service", "runtime/worker"),
}
# Programs and tests stand on top of everything; these few files tie an interface to its
# implementations and so look up.
BELOW_ALL = ("base", PUBLIC)
TOP = ("runtime/cli/", "runtime/main.cc", "bench/", "python/", "tests/")
FACTORIES = {
    "attention/backend.cc": ("attention/cpu", "attention/cuda", "attention/reference"),
    "attention/pattern_parser.cc": ("attention/patterns",),
}

INCLUDE = re.compile(r'\s*#\s*include "([^"]+)"')
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
# Names of this or that machine have no place in sources.
MACHINE_PATH = re.compile(r"/(work|home|root|var/tmp)/")
# Headers that others bring along on one distribution and not on the next.
BY_NAME = {
    "absl/strings/escaping.h": r"absl::(CHexEscape|CEscape|BytesToHexString|HexStringToBytes)\b",
    "absl/strings/match.h": r"absl::(StrContains|StartsWith|EndsWith|EqualsIgnoreCase)\b",
    "absl/strings/numbers.h": r"absl::Simple(Atoi|Atod|Atob)\b",
    "absl/strings/str_cat.h": r"absl::Str(Cat|Append)\b",
    "absl/strings/str_format.h": r"absl::StrFormat\b",
    "absl/strings/str_join.h": r"absl::StrJoin\b",
    "absl/strings/str_split.h": r"absl::StrSplit\b",
    "absl/time/clock.h": r"absl::(Now|SleepFor)\b",
}
# CMake's lists end an item there: such a test would be two that do not exist.
TEST_NAME_WITH_SEMICOLON = re.compile(r'TEST_CASE\("[^"]*;')
# Errors have one form, `field: value; expected …`, and bounds `name: value; what is in use`.
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
OTHER_FORM = re.compile(r"[,:] expected\b|_(max|limit) is ")


def folder_of(path):
    """The layer that a file belongs to, or None if it is none of ours."""
    folder = os.path.dirname(path)
    if folder == "annulus":
        return PUBLIC
    while folder:
        if folder in LAYERS:
            return folder
        folder = os.path.dirname(folder)
    return None


def check_include(path, target):
    if path.startswith(TOP):
        return None
    here, there = folder_of(path), folder_of(target)
    if target.startswith(TOP):
        return f"{path} includes: {target}; expected nothing that stands on top of it"
    if there is None or there in (here, *BELOW_ALL, *LAYERS[here]):
        return None
    if there in FACTORIES.get(path, ()):
        return None
    return f"{here} includes: {target}; expected only {', '.join((*BELOW_ALL, *LAYERS[here]))}"


def long_functions(lines):
    """(line, length) of functions that are too long, by clang-format's shape of a definition."""
    begin = None
    for number, line in enumerate(lines, 1):
        if re.match(r"[\w~:].*[({,]$", line) and not re.match(
                r"(namespace|class|struct|enum|extern|constexpr|const|using)\b", line):
            begin = begin or number
        elif re.match(r"\}", line):
            if begin and number - begin + 1 > FUNCTION_LINES_MAX:
                yield begin, number - begin + 1
            begin = None


def has_other_form(line):
    """Whether a string of the line is an error's text in another form than the house's."""
    return any(OTHER_FORM.search(text) for text in STRING.findall(line))


def missing_includes(path, lines):
    """(line, header) of what a file uses and neither it nor the header of its name includes."""
    included = {match.group(1) for match in map(INCLUDE.match, lines) if match}
    header = os.path.splitext(os.path.join(ROOT, path))[0] + ".h"
    if path.endswith(".cc") and os.path.exists(header):
        with open(header, encoding="utf-8") as file:
            included |= {match.group(1) for match in map(INCLUDE.match, file) if match}
    for target, names in BY_NAME.items():
        if target in included:
            continue
        for number, line in enumerate(lines, 1):
            if re.search(names, line.partition("//")[0]):
                yield number, target
                break


def check_texts(lines):
    for number, line in enumerate(lines, 1):
        if has_other_form(line):
            yield number, "error's text: of another form; expected `field: value; expected …`"


def check_file(path, lines):
    if len(lines) > LINES_MAX:
        yield 1, f"lines: {len(lines)}; expected at most {LINES_MAX}"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            yield number, f"columns: {len(line)}; expected at most {COLUMNS_MAX}"
        if UNFINISHED.search(line):
            yield number, "unfinished work: named; expected an issue instead"
        if MACHINE_PATH.search(line):
            yield number, "path of some machine: named; expected none"
        if TEST_NAME_WITH_SEMICOLON.search(line):
            yield number, "test's name: has ';'; expected none: CTest cannot run it"
        if path.startswith(PUBLIC) and "#include" in line and not PUBLIC_INCLUDE.match(line):
            yield number, "include: another; expected annulus/, absl/ and the standard library only"
        include = INCLUDE.match(line)
        if include and (finding := check_include(path, include.group(1))):
            yield number, finding
    for number, target in missing_includes(path, lines):
        yield number, f"include of {target}: none; expected one for what is used here"
    if path.endswith(".cc") and not path.startswith("tests/"):
        for number, length in long_functions(lines):
            yield number, f"lines of a function: {length}; expected at most {FUNCTION_LINES_MAX}"


def sources(suffixes):
    """(path, lines) of the files with one of these suffixes."""
    for top in SOURCE_FOLDERS:
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            for name in names:
                if name.endswith(suffixes):
                    path = os.path.join(folder, name)
                    with open(path, encoding="utf-8") as file:
                        yield os.path.relpath(path, ROOT), file.read().splitlines()


def main():
    findings = [f"{path}:{number}: {what}"
                for path, lines in sorted(sources((*CODE, ".proto", ".cmake", "CMakeLists.txt")))
                for number, what in check_file(path, lines)]
    findings += [f"{path}:{number}: {what}"
                 for path, lines in sorted(sources((*CODE, ".py"))) if not path.startswith("tests/")
                 for number, what in check_texts(lines)]
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
