"""Upgrades change only what Kubernetes lets be changed, and none that workers cannot follow."""

import shutil

import pytest
import yaml

import api_server
import chart

SECRET = {"tls": {"mode": "secret", "coordinatorSecret": "c"}}
ISSUER = {"tls": {"mode": "cert-manager", "certManager": {"issuerRef": {"name": "i"}}}}
TOKENS = {"enabled": True, "existingSecret": "a", "workerToken": {"existingSecret": "w"}}
EVERYTHING = chart.CHART / "ci" / "everything-values.yaml"
# Fields of spec that may change where an object is there already; the others may not.
MUTABLE = {
    "StatefulSet": {"replicas", "template", "updateStrategy", "revisionHistoryLimit"},
    "Deployment": {"replicas", "template", "strategy", "revisionHistoryLimit"},
    "Job": {"ttlSecondsAfterFinished"},
    "Pod": set(),
}
# Hooks are deleted before they are made again.
HOOK = "helm.sh/hook"


def of_version(folder, version):
    """The chart, as another version of it."""
    copy = folder / f"annulus-{version}"
    shutil.copytree(chart.CHART, copy)
    about = yaml.safe_load((copy / "Chart.yaml").read_text())
    (copy / "Chart.yaml").write_text(
        yaml.safe_dump({**about, "version": version, "appVersion": version})
    )
    return copy


def assert_possible(before, after):
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in before}
    for new in after:
        old = by_name.get((new["kind"], new["metadata"]["name"]))
        if old is None or HOOK in new["metadata"].get("annotations", {}):
            continue
        if new["kind"] == "Service":
            headless = [one["spec"].get("clusterIP") for one in (old, new)]
            assert headless[0] == headless[1]
        if new["kind"] not in MUTABLE:
            continue
        fixed = set(old["spec"]) | set(new["spec"])
        for field in fixed - MUTABLE[new["kind"]]:
            names = f"{new['kind']} {new['metadata']['name']}: {field}"
            assert old["spec"].get(field) == new["spec"].get(field), names


def test_what_kubernetes_would_refuse_is_found():
    after = chart.render()
    chart.find(after, "StatefulSet")["spec"]["podManagementPolicy"] = "OrderedReady"
    with pytest.raises(AssertionError, match="StatefulSet r-annulus-cpu: podManagementPolicy"):
        assert_possible(chart.render(), after)


@pytest.mark.parametrize("values", [{}, EVERYTHING, chart.CHART / "ci" / "operators-values.yaml"])
def test_to_another_version(values, tmp_path):
    before = chart.render(values)
    after = chart.render(values, chart=of_version(tmp_path, "9.8.7"))
    assert_possible(before, after)
    names = [[(one["kind"], one["metadata"]["name"]) for one in many] for many in (before, after)]
    assert names[0] == names[1]
    image = chart.find(after, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.endswith(":9.8.7") or "@sha256:" in image


def test_a_new_version_of_the_chart_alone_restarts_nobody(tmp_path):
    pinned = {"image": {"tag": "0.1.0"}}
    before, after = (
        chart.render(pinned, **where) for where in ({}, {"chart": of_version(tmp_path, "9.8.7")})
    )
    for kind in ("Deployment", "StatefulSet"):
        templates = [chart.find(many, kind)["spec"]["template"] for many in (before, after)]
        assert templates[0] == templates[1]


@pytest.mark.parametrize("to", [SECRET, ISSUER, {**SECRET, "auth": TOKENS}, EVERYTHING], ids=str)
def test_to_other_values(to):
    named = {"fullnameOverride": "r-kv", "nameOverride": "kv"}
    assert_possible(chart.render(named), chart.render(to, named))


def test_benchmarks_that_differ_are_different_jobs():
    def job(ranks):
        benchmark = {"enabled": True, "image": "bench", "ranks": ranks}
        return chart.find(chart.render({"benchmark": benchmark}), "Job")["metadata"]["name"]

    assert job(2) == job(2) != job(4)


def change(folder, before, after, version):
    """Renders `after` where `before` runs; "" or the error of the templates. (Helm 4 also wants to
    know the kinds of what it has rendered, which this cluster cannot tell.)"""
    with api_server.Cluster(chart.render(before)) as running:
        words = ["--dry-run=server", "--kubeconfig", running.config(folder)]
        try:
            chart.render(after, *words, version=version)
            error = ""
        except ValueError as refused:
            error = str(refused) if "execution error at (annulus/" in str(refused) else ""
        assert running.methods == {"GET"}
        return error


@pytest.mark.parametrize("version", chart.VERSIONS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, SECRET),
        (SECRET, {}),
        ({}, ISSUER),
        (SECRET, {**SECRET, "auth": TOKENS}),
        (SECRET, {"tls": {**SECRET["tls"], "requireClientCertificates": True}}),
    ],
    ids=str,
)
def test_a_change_that_running_workers_cannot_follow_is_refused(before, after, version, tmp_path):
    error = change(tmp_path, before, after, version)
    assert "tls.allowChange: false, and this upgrade changes how workers reach" in error
    told = chart.merged(after, {"tls": {"allowChange": True}})
    assert change(tmp_path, before, told, version) == ""


@pytest.mark.parametrize("version", chart.VERSIONS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"worker": {"replicas": 5}, "image": {"tag": "9.8.7"}}),
        (SECRET, ISSUER),  # the same for workers: their own files change when they are replaced
        (SECRET, {"tls": {**SECRET["tls"], "plainData": True}}),
    ],
    ids=str,
)
def test_other_changes_are_not(before, after, version, tmp_path):
    assert change(tmp_path, before, after, version) == ""
