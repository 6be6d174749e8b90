"""Runs the tests behind the reliability bars with their full load and writes what they measured as a
table: FILE.md and FILE.csv. Exits 1 if a bar is not met.

    reliability.py BUILD_FOLDER [--out FILE.md]

A test tells its rows on lines "reliability<tab>number<tab>fault<tab>load<tab>bar<tab>figure<tab>yes|no"
(tests/reliability.h). One that fails, or tells none, counts as a bar that is not met.
"""

import argparse
import csv
import os
import platform
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COLUMNS = ("row", "fault", "load before", "bar", "figure", "met")
NETNS = (sys.executable, os.path.join(ROOT, "tests", "netns", "netns_test.py"), "{annulus}")
SOAK = (sys.executable, os.path.join(ROOT, "bench", "reliability", "soak.py"), "{annulus}",
        "--minutes", "60", "--slope-max", "1")
SKIPPED = 77

# The bar's number, what runs, and what it is asked for beyond an ordinary run.
TESTS = (
    (1, ("test_cli", "a worker killed while nothing happens*"), {}),
    (1, ("test_cli", "a worker killed under load: *"), {}),
    (2, ("test_cli", "a worker stopped under load*"), {"ANNULUS_STOP_S": "30"}),
    (3, NETNS, {}),
    (4, ("test_cli", "a coordinator killed under load*"), {}),
    # A comma would end the name.
    (5, ("test_cli", r"a worker killed under load\, with two copies*"), {}),
    (5, ("test_cli", "a worker told to end under load*"), {}),
    (6, ("test_runtime", "Simulated coordinators*"), {"ANNULUS_RESTART_SEEDS": "500"}),
    (7, ("test_runtime", "A call ends at its deadline*"), {}),
    (7, ("test_runtime", "A task whose deadline has passed*"), {}),
    (7, ("test_data", "a client that vanishes*"), {}),
    (7, ("test_rpc", "a client that does not read its answer*"), {}),
    (8, ("test_rpc", "ten times more callers*"), {}),
    (8, ("test_rpc", "eight tenants that want*"), {"ANNULUS_OVERLOAD_S": "300"}),
    (8, ("test_rpc", "a tenant that floods leaves others*"), {"ANNULUS_OVERLOAD_S": "60"}),
    (9, ("test_runtime", "Random requests*"), {"ANNULUS_HOSTILE_CASES": "1000000"}),
    (10, (os.path.join(ROOT, "tests", "fuzz", "run.sh"), "{fuzzers}", "600"), {}),
    (11, ("test_cli", "another tenant's context cannot be told from none\\, often"), {}),
    (11, ("test_runtime", "what one tenant has let go of*"), {}),
    (12, ("test_security", "a hundred thousand connections of garbage*"), {}),
    (12, ("test_security", "a coordinator that ran out of descriptors*"), {}),
    (13, ("test_runtime", "A bit that flips*"), {"ANNULUS_BIT_FLIPS": "100000"}),
    (14, ("test_runtime", "Simulated clusters answer*"), {"ANNULUS_SIM_SEEDS": "10000"}),
    (14, ("test_runtime", "Stand-stills and cut-offs*"), {"ANNULUS_PAUSE_SEEDS": "10000"}),
    (15, SOAK, {}),
    (16, ("test_cli", "a coordinator stopped under load*"), {}),
    (16, ("test_cli", "a coordinator stopped under load*"), {"ANNULUS_PAUSE_S": "5"}),
    (16, ("test_cli", "a coordinator stopped under load*"), {"ANNULUS_PAUSE_S": "30"}),
)


def rows_of(number, command, variables, build):
    places = {"annulus": os.path.join(build, "annulus"),
              "fuzzers": os.path.join(os.path.dirname(build), "fuzz")}
    program, *arguments = (part.format(**places) for part in command)
    path = program if os.path.isabs(program) else os.path.join(build, program)
    outcome = subprocess.run((path, *arguments), env=dict(os.environ, **variables),
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             errors="replace")
    rows = [line.split("\t")[1:] for line in outcome.stdout.splitlines()
            if line.startswith("reliability\t")]
    name = arguments[0] if len(arguments) == 1 else program
    if outcome.returncode == SKIPPED:
        rows = [[str(number), name, "", "", outcome.stdout.strip(), "skipped"]]
    elif outcome.returncode != 0 or not rows:
        rows.append([str(number), name, "", "", f"the test ended with {outcome.returncode}", "no"])
        sys.stderr.write(outcome.stdout)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("build")
    parser.add_argument("--out", default=os.path.join(ROOT, "bench/results/reliability.md"))
    options = parser.parse_args()
    if not options.out.endswith(".md"):
        parser.error(f"--out: {options.out!r}; expected a name that ends in .md")
    if not os.access(os.path.dirname(os.path.abspath(options.out)), os.W_OK | os.X_OK):
        parser.error(f"--out: {options.out!r}; expected a folder that can be written to")
    rows = []
    for number, command, variables in TESTS:
        for row in rows_of(number, command, variables, os.path.abspath(options.build)):
            print(" | ".join(row), flush=True)
            rows.append(row)
    with open(options.out, "w", encoding="utf-8") as file:
        file.write(f"Reliability bars, on {os.cpu_count()} cores, Linux {platform.release()}.\n\n")
        file.write(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
        for row in rows:
            file.write(f"| {' | '.join(field.replace('|', '/') for field in row)} |\n")
    with open(options.out[:-2] + "csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((COLUMNS, *rows))
    sys.exit(any(row[-1] == "no" for row in rows))


if __name__ == "__main__":
    main()
