"""What the chart knows of the program's options and clusters is what the program itself says."""

import os
import re
import subprocess

import pytest
import yaml

import chart

PROGRAM = os.environ.get("ANNULUS_PROGRAM")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="no built program is named")
PROBE = """
apiVersion: v1
kind: ConfigMap
metadata: {name: probe}
data:
  set: {{ include "annulus.setOptions" "%(command)s" | toJson }}
  free: {{ include "annulus.freeOptions" "%(command)s" | toJson }}
  clusters: {{ include "annulus.knownClusters" . | toJson }}
"""


def known(command):
    rendered = chart.render({"extraObjects": [PROBE % {"command": command}]})
    return chart.find(rendered, "ConfigMap", "probe")["data"]


def said(*words):
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", ["coordinator", "worker"])
def test_options(command):
    program = set(re.findall(r"^  --([a-z0-9-]+)", said(command, "--help"), re.MULTILINE))
    sets = yaml.safe_load(known(command)["set"])
    free = yaml.safe_load(known(command)["free"])
    assert sets.keys().isdisjoint(free)
    assert sets.keys() | set(free) == program
    defaults = chart.default_values()
    of = {"coordinator": "coordinator", "worker": "worker"}[command]
    for value in " and ".join(sets.values()).split(" and "):
        at = defaults
        for key in value.replace("OF", of).split(".") if value != "-" else []:
            at = at[key]  # a value that is named is one that there is


@pytest.mark.parametrize("command", ["coordinator", "worker"])
def test_forms(command, tmp_path):
    """The chart takes of each option what the program says that it takes."""
    needed = {"coordinator": ["--listen=127.0.0.1:0"], "worker": ["--coordinator=127.0.0.1:1"]}
    helped = said(command, "--help")
    file = tmp_path / "options.conf"
    for option, form in yaml.safe_load(known(command)["free"]).items():
        if form == "file":
            assert re.search(f"^  --{option} F ", helped, re.MULTILINE)
            continue
        file.write_text(f"{option} = x\n")
        refused = said(command, *needed[command], f"--config={file}")
        if form == "switch":
            assert f'{option}: "x"; expected true or false' in refused
        else:
            assert f'{option}: "x"; expected an integer from {form[0]} to {form[1]} (K' in refused


# What a value says, and what the file has.
SIZES = [
    (text, text) for text in ("8G", "512K", "1M", "0", "00100", "100", "8Gi", "8g", "1.5", "-1")
]
SIZES += [(text, text) for text in ("", " 7 ", "K", "1e3", "9" * 20, "1048576G", "1048577G")]
SIZES += [(100, "100"), (1e6, "1000000"), (1.5, "1.5"), (-1, "-1"), (True, "true")]
SIZES += [(1 << 50, str(1 << 50)), ((1 << 50) + 4, str((1 << 50) + 4))]


@pytest.mark.parametrize(("size", "text"), SIZES)
def test_sizes(size, text, tmp_path):
    """The chart refuses what the program refuses, and nothing else."""
    limits = {"limits": {"memory": "4096Ti"}}
    values = {"coordinator": {"options": {"list-cache-bytes": size}, "resources": limits}}
    file = tmp_path / "options.conf"
    file.write_text(f"list-cache-bytes = {text}\n")
    # An address of no machine ends a program that takes its options.
    refused = said("coordinator", "--listen=192.0.2.1:1", "--insecure", f"--config={file}")
    if "cannot listen" in refused:
        files = chart.find(chart.render(values), "ConfigMap")["data"]
        assert files["coordinator.conf"].endswith(f"\nlist-cache-bytes = {text.strip()}")
    else:
        assert "list-cache-bytes: " in refused
        with pytest.raises(ValueError, match=r"coordinator.options.list-cache-bytes: .*; expected"):
            chart.render(values)


@pytest.mark.parametrize("command", ["coordinator", "worker"])
def test_what_the_chart_sets_is_known_to_be_set(command):
    sets = yaml.safe_load(known(command)["set"])
    kind = {"coordinator": "Deployment", "worker": "StatefulSet"}[command]
    for case in chart.CASES:
        for one, pod in chart.pod_specs(chart.render(case)):
            if one["kind"] == kind:
                args = pod["containers"][0]["args"][1:]
                names = {word.removeprefix("--").partition("=")[0] for word in args}
                assert names - {"client-stall-max"} <= sets.keys()


def test_clusters():
    names = known("worker")["clusters"].split(" ")
    listed = said("coordinator", "--listen=127.0.0.1:0", "--cluster=none").partition("one of ")[2]
    assert listed.strip().split(", ") == names
    for name in names:
        chart.render({"coordinator": {"cluster": name}})
    chart.render({"coordinator": {"cluster": "/etc/annulus/mine/cluster.json"}})
