"""What the scripts of bench/gpu share: a result file that has each case's rows as soon as it ran."""

import csv
import datetime
import os
import sys


def about(torch):
    """What every row says of the run."""
    return about_gpu(torch.cuda.get_device_name())


def about_gpu(name):
    return {"date": datetime.date.today().isoformat(), "gpu": name,
            "commit": os.environ.get("ANNULUS_COMMIT", "unknown")}


def write(path, columns, cases, run_case):
    """Runs run_case(case, writer) for each case; a RuntimeError is told and ends that case alone.
    Returns the exit status."""
    failed = False
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for case in cases:
            try:
                run_case(case, writer)
            except RuntimeError as error:
                print(f"{case[0]}: {error}", file=sys.stderr)
                failed = True
            file.flush()
    return 1 if failed else 0
