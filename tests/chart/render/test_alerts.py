"""Alerts, as a file and as the chart brings them, fire, resolve, and stay quiet where alerts.yaml
and alerts_more.yaml say so; each has a runbook."""

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
MORE = yaml.load(Path(__file__).with_name("alerts_more.yaml").read_text(), Loader=yaml.BaseLoader)
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
    quiet = {re.sub('job="[^"]*"', 'job="s"', key): of for key, of in case["quiet"].items()}
    both = series({**case["series"], **quiet})
    yield {"interval": "1m", "input_series": both, "alert_rule_test": loud}


def test_rules_are_well_formed():
    promtool("check", "rules", RULES)


def test_each_alert_has_a_case():
    assert ALERTS.keys() == CASES.keys()


def brought(values):
    """What the chart brings for the release r in the namespace kv."""
    on = {"monitoring": {"rules": {"enabled": True}}}
    return chart.find(chart.render(on, values, namespace="kv"), "PrometheusRule")["spec"]


def check(rules, name, case, folder):
    file = folder / "test.yaml"
    about = {"rule_files": [str(rules)], "evaluation_interval": "1m"}
    file.write_text(yaml.safe_dump({**about, "tests": list(cases_of(name, case))}))
    promtool("test", "rules", file)


def check_brought(values, name, case, folder):
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(brought(values)))
    promtool("check", "rules", rules)
    check(rules, name, case, folder)


@pytest.mark.parametrize("name", CASES)
def test_alert(name, tmp_path):
    check(RULES, name, CASES[name], tmp_path)
    check_brought({}, name, CASES[name], tmp_path)


@pytest.mark.parametrize("case", MORE, ids=lambda case: f"{case['alert']}: {case['why']}")
def test_more(case, tmp_path):
    if "values" not in case:
        check(RULES, case["alert"], case, tmp_path)
    check_brought(numbers(case.get("values", {})), case["alert"], case, tmp_path)


def numbers(values):
    """Of values that were read as text."""
    if isinstance(values, dict):
        return {key: numbers(value) for key, value in values.items()}
    return int(values) if values.isdigit() else values


def test_alerts_ask_for_their_release_alone():
    selector = '{job="r",namespace="kv"'
    for rule in brought({})["groups"][0]["rules"]:
        asked = len(re.findall("annulus_", rule["expr"]))
        assert asked > 0
        assert len(re.findall(r"annulus_\w+" + re.escape(selector), rule["expr"])) == asked


def test_each_alert_has_a_runbook():
    page = chart.ROOT / "docs" / "pages" / "alerts.md"
    anchors = {
        re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        for title in re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    }
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/pages/alerts.md#{name.lower()}"
        assert name.lower() in anchors


def test_thresholds_of_the_file_are_those_of_the_programs_defaults():
    """The chart's own default is another for recoverySeconds alone."""
    for rule in brought({"coordinator": {"recoverySeconds": 10}})["groups"][0]["rules"]:
        text = rule["expr"].replace('{job="r",namespace="kv"}', "")
        text = text.replace('job="r",namespace="kv",', "").replace(" 604800", " 7 * 86400")
        assert text == ALERTS[rule["alert"]]["expr"]


def test_the_chart_brings_them():
    rendered = chart.render(chart.CHART / "ci" / "operators-values.yaml")
    (group,) = chart.find(rendered, "PrometheusRule")["spec"]["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert rules.keys() == ALERTS.keys() - {"AnnulusInsecure"}
    for name, rule in rules.items():
        url = f"https://docs.example.org/annulus/alerts.md#{name.lower()}"
        annotations = {**ALERTS[name]["annotations"], "runbook_url": url}
        own = {"expr": rule["expr"]}
        if name == "AnnulusCertificateExpires":
            own["for"] = "600s"
        assert rule == {**ALERTS[name], "annotations": annotations, **own}
