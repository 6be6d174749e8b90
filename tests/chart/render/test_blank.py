"""A key that is left blank in YAML (null) counts as its default, whichever it is."""

import concurrent.futures
import functools

import pytest
import test_changes

import chart

CASE = chart.CHART / "ci" / "operators-values.yaml"


def groups(values, path=""):
    """Paths of groups of values, as `tls.certManager`."""
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value and here not in test_changes.DESCRIBED:
            yield here
            yield from groups(value, here)


def blank(path):
    return test_changes.said(path, None)


@functools.cache
def default(version):
    return chart.render(version=version)


@pytest.mark.parametrize("version", chart.VERSIONS)
def test_every_value_and_group_may_be_left_blank(version):
    defaults = chart.default_values()
    paths = [*test_changes.DESCRIBED, *groups(defaults)]
    assert {"commonLabels", "worker.backend", "network.transports", "probes", "pools"} < set(paths)

    def error(path):
        try:
            rendered = chart.render(blank(path), version=version)
        except ValueError as refused:
            return path, str(refused)
        return path, None if rendered == default(version) else "renders otherwise"

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        wrong = dict(pool.map(error, paths))
    assert {path: why for path, why in wrong.items() if why is not None} == {}


def test_notes_are_whole_where_groups_are_blank():
    words = ["--dry-run=client", "--set", "tls=null,pools=null,networkPolicy=null,auth=null"]
    done = chart.run_helm("install", "r", chart.CHART, *words)
    assert done.returncode == 0, done.stderr
    assert "r-annulus.default.svc.cluster.local:7070" in done.stdout
    assert "<no value>" not in done.stdout


def test_a_blank_key_within_a_value_takes_that_key_away():
    values = {"podSecurityContext": {"runAsUser": None}, "pools": {"cpu": None, "own": {}}}
    rendered = chart.render(values)
    workers = chart.find(rendered, "StatefulSet")
    assert workers["metadata"]["name"] == "r-annulus-own"
    assert "runAsUser" not in workers["spec"]["template"]["spec"]["securityContext"]
