"""Alerts fire, resolve, and stay quiet where alerts.yaml says so; each has a runbook."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import chart

RULES = chart.CHART / "files" / "rules.yaml"
# As text: 0x30 is thirty samples of 0 and no number.
CASES = yaml.load(Path(__file__).with_name("alerts.yaml").read_text(), Loader=yaml.BaseLoader)
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
}
pytestmark = pytest.mark.skipif(not shutil.which("promtool"), reason="there is no promtool")


def promtool(*words, **options):
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def cases_of(name, case):
    def series(of):
        return [{"series": key, "values": str(values)} for key, values in of.items()]

    rule = ALERTS[name]
    annotations = {**rule["annotations"], "description": case["says"]}
    alert = {"exp_labels": {**case["labels"], **rule["labels"]}, "exp_annotations": annotations}
    loud = [
        {"eval_time": case["fires"], "alertname": name, "exp_alerts": [alert]},
        {"eval_time": case["resolved"], "alertname": name, "exp_alerts": []},
    ]
    end = int(case["resolved"].removesuffix("m"))
    never = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []} for minute in range(end)
    ]
    yield {"interval": "1m", "input_series": series(case["series"]), "alert_rule_test": loud}
    yield {"interval": "1m", "input_series": series(case["quiet"]), "alert_rule_test": never}
    # Another release of the namespace neither fires, nor hides or thins the one that does.
    quiet = {key.replace('job="r"', 'job="s"'): of for key, of in case["quiet"].items()}
    both = series({**case["series"], **quiet})
    yield {"interval": "1m", "input_series": both, "alert_rule_test": loud}


def test_rules_are_well_formed():
    promtool("check", "rules", RULES)


def test_each_alert_has_a_case():
    assert ALERTS.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_alert(name, tmp_path):
    file = tmp_path / "test.yaml"
    about = {"rule_files": [str(RULES)], "evaluation_interval": "1m"}
    file.write_text(yaml.safe_dump({**about, "tests": list(cases_of(name, CASES[name]))}))
    promtool("test", "rules", file)


def test_each_alert_has_a_runbook():
    page = chart.ROOT / "docs" / "pages" / "alerts.md"
    anchors = {
        re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        for title in re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    }
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/pages/alerts.md#{name.lower()}"
        assert name.lower() in anchors


def test_the_chart_brings_them():
    rendered = chart.render(chart.CHART / "ci" / "operators-values.yaml")
    (group,) = chart.find(rendered, "PrometheusRule")["spec"]["groups"]
    brought = {rule["alert"]: rule for rule in group["rules"]}
    assert brought.keys() == ALERTS.keys() - {"AnnulusInsecure"}
    for name, rule in brought.items():
        url = f"https://docs.example.org/annulus/alerts.md#{name.lower()}"
        annotations = {**ALERTS[name]["annotations"], "runbook_url": url}
        assert rule == {**ALERTS[name], "annotations": annotations}
