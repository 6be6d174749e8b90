"""What checkov finds is in checkov.yaml with a reason, and nothing there is found no longer."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

import chart

FOLDER = Path(__file__).parent
# Those of extra containers and objects are their authors'.
CASES = [case for case in chart.CASES if case.stem != "everything-values"]


def test_findings_have_reasons(tmp_path):
    reasons = yaml.safe_load((FOLDER / "checkov.yaml").read_text())
    words = ["--framework", "kubernetes", "--skip-download", "--output", "json", "--directory"]
    for case in CASES:
        (tmp_path / case.name).write_text(chart.template(case))
    program = Path(sys.prefix) / "bin" / "checkov"
    done = subprocess.run([program, *words, tmp_path], capture_output=True, text=True)
    results = json.loads(done.stdout)["results"]
    found = {(one["check_id"], one["check_name"]) for one in results["failed_checks"]}
    assert not {one for one in found if one[0] not in reasons}
    assert {check for check, _ in found} == set(reasons), "a reason for what is found no longer"
    assert len(results["passed_checks"]) > 100 and not results["parsing_errors"]
