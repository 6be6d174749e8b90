"""Commands and values of README and docs work as they stand there."""

import re
import shlex

import pytest
import yaml

import chart

PAGES = {
    page: (chart.ROOT / page).read_text()
    for page in ("README.md", "docs/pages/kubernetes.md", "helm/annulus/README.md")
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text):
    """helm's, as words."""
    for _, block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("helm "):
                yield shlex.split(line, comments=True)[1:]


def values(text):
    """Files of values by the name in their first line."""
    for kind, block in BLOCK.findall(text):
        if kind == "yaml":
            yield re.match(r"# (\S+\.yaml)\n", block)[1], block


@pytest.mark.parametrize("page", PAGES)
def test_commands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helm").symlink_to(chart.ROOT / "helm")
    (tmp_path / "jwks.json").write_text('{"keys": []}')
    for name, text in values(PAGES[page]):
        (tmp_path / name).write_text(text)
    ran = 0
    for verb, *words in commands(PAGES[page]):
        if verb == "test":
            continue
        # What installs needs a cluster, what renders does not.
        assert verb in ("install", "upgrade")
        words = [w for w in words if w not in ("--install", "--reset-then-reuse-values")]
        done = chart.run_helm("template", *words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        assert chart.find(chart.objects(done.stdout), "Deployment", "-coordinator")
        ran += 1
    assert ran > 0


def test_names_that_pages_tell():
    """Objects that commands and texts name are those of the release."""
    rendered = chart.objects(
        chart.run_helm("template", "annulus", chart.CHART, "--namespace", "annulus").stdout
    )
    names = {(one["kind"], one["metadata"]["name"]) for one in rendered}
    assert ("Deployment", "annulus-coordinator") in names
    assert ("StatefulSet", "annulus-cpu") in names
    account = "system:serviceaccount:annulus:annulus"
    assert ("ServiceAccount", "annulus") in names and account in PAGES["docs/pages/kubernetes.md"]
    (pod,) = (pod for one, pod in chart.pod_specs(rendered) if one["kind"] == "Pod")
    endpoint = pod["containers"][0]["args"][1].partition("=")[2]
    assert endpoint == "annulus.annulus.svc.cluster.local:7070"
    assert endpoint in PAGES["docs/pages/kubernetes.md"]


def test_defaults_that_pages_tell():
    defaults = chart.default_values()
    assert defaults["worker"]["rejoinSeconds"] == 900
    assert defaults["coordinator"]["recoverySeconds"] == 60
    assert defaults["coordinator"]["tolerationSeconds"] == 15
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == "0.1.0" and about["kubeVersion"] == ">=1.25.0-0"
