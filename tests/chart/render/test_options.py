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
    free = known(command)["free"].split(" ")
    assert sets.keys().isdisjoint(free)
    assert sets.keys() | set(free) == program
    defaults = chart.default_values()
    of = {"coordinator": "coordinator", "worker": "worker"}[command]
    for value in " and ".join(sets.values()).split(" and "):
        at = defaults
        for key in value.replace("OF", of).split(".") if value != "-" else []:
            at = at[key]  # a value that is named is one that there is


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
