"""annulus_scale's prediction beside what bench/gpu/ranks.py measured, a row for each plan.

    python3 bench/gpu/predict.py --cluster bench/scale/h200x4.json RANKS.csv >FILE.csv

All cases are predicted from the one cluster file: what one GPU alone attains and what the links carry.
"""

import argparse
import csv
import json
import subprocess
import sys

COLUMNS = "case plan pattern tokens heads kv_heads world ms predicted_ms error_pct".split()


def predicted(program, cluster, row):
    command = [program, "--cluster", cluster, "--pattern", row["pattern"], "--plan", row["plan"],
               "--tokens", row["tokens"], "--heads", row["heads"], "--kv-heads", row["kv_heads"],
               "--head-dim", row["head_dim"], "--dtype", row["dtype"], "--ranks", row["world"], "--json"]
    out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if out["bytes_sent"] != int(row["bytes_sent"]):  # then it is another plan
        raise RuntimeError(f"{row['case']} {row['plan']}: {out['bytes_sent']} bytes in the simulation, "
                           f"{row['bytes_sent']} measured")
    return out["ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ranks", help="a result file of ranks.py")
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--program", default="build/release/annulus_scale")
    args = parser.parse_args()
    with open(args.ranks, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in {(row["case"], row["plan"]): row for row in rows}.values():  # peers repeat plans
        ms = predicted(args.program, args.cluster, row)
        writer.writerow(dict(row, ms=round(float(row["ms"]), 2), predicted_ms=round(ms, 2),
                             error_pct=round(100 * (ms / float(row["ms"]) - 1), 1)))


if __name__ == "__main__":
    main()
