"""Alerts, dashboards and the trigger for scaling ask for metrics and labels that processes have."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import chart
import processes

PROGRAM = os.environ.get("ANNULUS_PROGRAM")
FILES = chart.CHART / "files"
METRIC = re.compile(r"\b((?:annulus|process)_\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
GROUPED = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")
# Labels that scrapers and histograms add.
ADDED = {"namespace", "instance", "job", "pod", "service", "le"}
# What is there on a GPU alone, or while calls wait: labels by name, as docs/pages/operations.md
# has them.
SELDOM = {
    "annulus_gpu_memory_bytes": {"device"},
    "annulus_gpu_memory_bytes_limit": {"device"},
    "annulus_tenant_calls_waiting": {"tenant"},
}


def panels():
    for file in sorted(FILES.glob("dashboard-*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            yield from panel.get("targets", [])


def expressions():
    """(expression, labels that its texts name), where Grafana's own words have become PromQL."""
    for target in panels():
        text = target["expr"].replace("$__rate_interval", "5m").replace("$namespace", ".*")
        text = text.replace("$job", ".*")
        yield text, set(SHOWN.findall(target["legendFormat"]))
    monitoring = {"serviceMonitor": {"enabled": True}, "rules": {"enabled": True}}
    autoscaling = {"autoscaling": {"enabled": True}}
    scaled = chart.render({"monitoring": monitoring, "worker": autoscaling})
    own = chart.find(scaled, "PrometheusRule")["spec"]
    for file in (yaml.safe_load((FILES / "rules.yaml").read_text()), own):
        for group in file["groups"]:
            for rule in group["rules"]:
                shown = " ".join(rule["annotations"].values())
                yield rule["expr"], set(re.findall(r"\$labels\.(\w+)", shown))
    query = chart.find(scaled, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    yield query, set()


def write_npy(path, shape):
    count = shape[0] * shape[1] * shape[2]
    about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(about)) + about.encode()
    path.write_bytes(head + struct.pack(f"<{count}f", *(0.5 for _ in range(count))))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Labels by metric, on the pages of a coordinator and a worker that have done something."""
    if not PROGRAM or not shutil.which("openssl"):
        pytest.skip("no built program is named, or there is no openssl")
    folder = tmp_path_factory.mktemp("release")
    rendered = chart.render(chart.CHART / "ci" / "secret-values.yaml")
    with processes.Processes(rendered, folder, PROGRAM) as running:
        (coordinator,) = processes.containers(rendered, "Deployment")
        (worker,) = processes.containers(rendered, "StatefulSet")
        ports = [running.start(coordinator), running.start(worker)]
        for port in ports:
            running.wait_for(port, "/readyz")
        for name, tokens in (("q", 1), ("k", 300), ("v", 300)):
            write_npy(folder / f"{name}.npy", (tokens, 4, 64))
        words = ["attend", "--endpoint", f"127.0.0.1:{running.grpc}", "--pattern", "causal"]
        words += [
            "--tls-ca",
            folder / "tls" / "ca.crt",
            "--token-file",
            folder / "tenant" / "token",
        ]
        words += [word for one in "qkv" for word in (f"--{one}", folder / f"{one}.npy")]
        words += ["--out", folder / "out.npy", "--repeat", "1000000"]
        running.begin([PROGRAM, *words])
        running.wait_for(ports[0], "/metrics", 'annulus_requests_total{call="Attend",code="OK"}')
        pages = [running.wait_for(port, "/metrics") for port in ports]
    labels = {name: set(of) for name, of in SELDOM.items()}
    for line in "\n".join(pages).splitlines():
        if line and not line.startswith("#"):
            name, inner = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
            labels.setdefault(name, set()).update(LABEL.findall(inner or ""))
    return labels, pages


def test_metrics_and_labels_are_there(told):
    labels, _ = told
    missing = []
    for text, shown in expressions():
        names = {name for name, _ in METRIC.findall(text)}
        known = set().union(ADDED, *(labels.get(name, set()) for name in names))
        missing += [f"{name}: {text}" for name in names - labels.keys()]
        for name, inner in METRIC.findall(text):
            own = labels.get(name, set()) | ADDED
            missing += [f"{name}{{{one}}}: {text}" for one in set(LABEL.findall(inner)) - own]
        grouped = {one.strip() for inner in GROUPED.findall(text) for one in inner.split(",")}
        missing += [f"{one}: {text}" for one in (grouped - {""} | shown) - known]
    assert missing == []


def test_metrics_that_are_seldom_there_are_documented():
    page = (chart.ROOT / "docs" / "pages" / "operations.md").read_text()
    for name, labels in SELDOM.items():
        (row,) = (line for line in page.splitlines() if f"`{name}`" in line)
        assert all(f"`{label}`" in row for label in labels)


def test_expressions_are_promql(tmp_path):
    if not shutil.which("promtool"):
        pytest.skip("there is no promtool")
    rules = [{"record": f"a:{i}", "expr": text} for i, (text, _) in enumerate(expressions())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_are_well_formed(told):
    if not shutil.which("promtool"):
        pytest.skip("there is no promtool")
    for page in told[1]:
        command = ["promtool", "check", "metrics"]
        done = subprocess.run(command, input=page, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_metric_that_is_not_there_is_found(told):
    labels = dict(told[0])
    del labels["annulus_status_up"]
    with pytest.raises(AssertionError, match="annulus_status_up: max"):
        test_metrics_and_labels_are_there((labels, []))


def test_dashboards_are_those_of_their_source():
    command = [sys.executable, chart.ROOT / "helm" / "dashboards.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rendered = chart.render(chart.CHART / "ci" / "operators-values.yaml")
    brought = chart.find(rendered, "ConfigMap", "-dashboards")["data"]
    files = {file.name: file for file in map(Path, FILES.glob("dashboard-*.json"))}
    assert brought.keys() == files.keys() and len(files) == 2
    for name, file in files.items():
        assert json.loads(brought[name]) == json.loads(file.read_text())
