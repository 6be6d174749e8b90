"""The chart renders with both versions of helm, alike each time, and to what pods may do least."""

import subprocess
import sys

import pytest
import yaml

import chart

both = pytest.mark.parametrize("version", chart.VERSIONS)
cases = pytest.mark.parametrize("case", chart.CASES, ids=lambda path: path.stem)


@both
@cases
def test_lint(version, case):
    done = chart.run_helm("lint", "--strict", chart.CHART, "-f", case, version=version)
    assert done.returncode == 0, done.stdout + done.stderr


@cases
def test_alike_each_time_and_with_each_helm(case):
    texts = {version: chart.template(case, version=version) for version in chart.VERSIONS}
    for version, text in texts.items():
        assert chart.template(case, version=version) == text
    by_version = [sorted(map(yaml.safe_dump, chart.objects(text))) for text in texts.values()]
    assert by_version[0] == by_version[1]


@cases
def test_objects_are_named_once_and_by_what_owns_them(case):
    rendered = chart.render(case)
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered]
    assert len(set(names)) == len(names)
    for one in rendered:
        if one["metadata"]["name"] in ("r-more", "r-kv-text"):
            continue  # extraObjects are as their authors want them
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == chart.RELEASE
        assert one["metadata"]["namespace"] == chart.NAMESPACE


@cases
def test_selectors_choose_their_own_pods_alone(case):
    rendered = chart.render(case)
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in rendered
        if "template" in one.get("spec", {})
    }

    def chosen(selector):
        return {
            name
            for name, labels in pods.items()
            if all(labels.get(key) == value for key, value in selector.items())
        }

    for one in rendered:
        if one["kind"] in ("Deployment", "StatefulSet"):
            labels = one["spec"]["selector"]["matchLabels"]
            assert chosen(labels) == {one["metadata"]["name"]}
        if one["kind"] == "Service":
            component = "worker" if one["metadata"]["name"].endswith("-workers") else "coordinator"
            assert chosen(one["spec"]["selector"])
            assert one["spec"]["selector"]["app.kubernetes.io/component"] == component


@cases
def test_pods_keep_the_restricted_standard(case):
    for _, pod in chart.pod_specs(chart.render(case)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for field in ("hostPID", "hostIPC"):
            assert field not in pod
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        context = pod["containers"][0]["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))


def test_workers_keep_kv_for_longer_than_a_coordinator_needs():
    rendered = chart.render()
    coordinator = chart.find(rendered, "Deployment")
    assert coordinator["spec"]["strategy"] == {"type": "Recreate"}
    pod = coordinator["spec"]["template"]["spec"]
    away = {one["key"]: one["tolerationSeconds"] for one in pod["tolerations"]}
    assert away == {
        "node.kubernetes.io/not-ready": 15,
        "node.kubernetes.io/unreachable": 15,
    }
    assert "--recovery-s=60" in pod["containers"][0]["args"]
    workers = chart.find(rendered, "StatefulSet")["spec"]
    assert workers["updateStrategy"] == {"type": "OnDelete"}
    assert workers["podManagementPolicy"] == "Parallel"
    assert "--rejoin-s=900" in workers["template"]["spec"]["containers"][0]["args"]
    internal = chart.find(rendered, "Service", "-internal")["spec"]
    assert internal["clusterIP"] == "None" and internal["publishNotReadyAddresses"] is True


@pytest.mark.parametrize(
    ("values", "drain"),
    [
        ({}, 25 + 16),  # 1Gi by 64Mi a second
        ({"worker": {"kvBytes": "256Mi"}}, 25 + 4),
        ({"pools": {"cpu": {"drainRate": "1Gi"}}}, 25 + 1),
        ({"pools": {"cpu": {"drainSeconds": 7}}}, 7),
        ({"pools": {"cpu": {"drainRate": 1}}}, 86400),  # the longest that the program takes
    ],
)
def test_time_to_drain_follows_from_kv(values, drain):
    pod = chart.find(chart.render(values), "StatefulSet")["spec"]["template"]["spec"]
    assert f"--drain-s={drain}" in pod["containers"][0]["args"]
    assert pod["terminationGracePeriodSeconds"] == drain + 15


def test_pools_take_what_is_said_of_workers_and_their_own_wins():
    worker = {"replicas": 3, "spread": True, "podLabels": {"a": "1", "b": "1"}}
    pools = {"cpu": {}, "own": {"replicas": 0, "spread": False, "podLabels": {"b": "2", "a": None}}}
    rendered = chart.render({"worker": worker, "pools": pools})
    cpu, own = (chart.find(rendered, "StatefulSet", f"-{name}")["spec"] for name in pools)
    assert (cpu["replicas"], own["replicas"]) == (3, 0)
    assert "topologySpreadConstraints" not in own["template"]["spec"]
    assert len(cpu["template"]["spec"]["topologySpreadConstraints"]) == 2
    assert cpu["template"]["metadata"]["labels"]["a"] == "1"
    assert own["template"]["metadata"]["labels"]["b"] == "2"
    assert "a" not in own["template"]["metadata"]["labels"]


def test_threads_are_those_of_the_quota():
    def threads(worker):
        spec = chart.find(chart.render({"worker": worker}), "StatefulSet")["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        found = [one for one in container["env"] if one["name"] == "ANNULUS_THREADS"]
        return found and found[0]["valueFrom"]["resourceFieldRef"]["resource"]

    assert threads({}) == "requests.cpu"
    assert threads({"resources": {"limits": {"cpu": 4}}}) == "limits.cpu"
    assert threads({"resources": {"requests": {"cpu": None}}}) == []
    assert threads({"threads": 3}) == []


@pytest.mark.parametrize("text", ["1Gi", "1024Mi", "1073741824", 1073741824, "1.0Gi", "1048576Ki"])
def test_quantities_mean_bytes(text):
    values = {"worker": {"kvBytes": text}}
    pod = chart.find(chart.render(values), "StatefulSet")["spec"]["template"]["spec"]
    assert "--kv-bytes-limit=1073741824" in pod["containers"][0]["args"]


@both
def test_as_a_part_of_another_chart(version, tmp_path):
    """With globals, and switched by a condition, as parents do it."""
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts" / "annulus").symlink_to(chart.CHART)
    dependency = {"name": "annulus", "version": "0.1.0", "condition": "annulus.enabled"}
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0"}
    (parent / "Chart.yaml").write_text(yaml.safe_dump({**about, "dependencies": [dependency]}))
    values = {
        "global": {
            "imageRegistry": "registry.example.org",
            "imagePullSecrets": ["pull"],
            "other": {"charts": "know"},
        },
        "annulus": {"enabled": True, "worker": {"replicas": 3}},
    }
    rendered = chart.render(values, chart=parent, version=version)
    workers = chart.find(rendered, "StatefulSet")["spec"]
    assert workers["replicas"] == 3
    pod = workers["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example.org/annulus:0.1.0"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    values["annulus"]["enabled"] = False
    assert chart.render(values, chart=parent, version=version) == []


def test_packaged_chart_has_what_it_needs(tmp_path):
    done = chart.run_helm("package", chart.CHART, "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("*.tgz")
    names = subprocess.run(["tar", "tzf", package], capture_output=True, text=True).stdout
    assert "annulus/values.schema.json" in names and "/ci/" not in names
    assert chart.render(chart=package) == chart.render()


def test_the_table_of_values_is_that_of_values_yaml():
    command = [sys.executable, chart.ROOT / "helm" / "values_table.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_own_labels_win_over_common_ones():
    common = {"app.kubernetes.io/component": "x", "app.kubernetes.io/part-of": "inference"}
    values = {"commonLabels": common, "worker": {"podLabels": {"annulus/pool": "x"}}}
    rendered = chart.render(values)
    assert chart.render(values, version="3.17") == rendered
    workers = chart.find(rendered, "StatefulSet")
    for labels in (
        workers["metadata"]["labels"],
        workers["spec"]["template"]["metadata"]["labels"],
    ):
        assert labels["app.kubernetes.io/component"] == "worker"
        assert labels["app.kubernetes.io/part-of"] == "inference"
        assert labels["annulus/pool"] == "cpu"


def test_notes_warn_of_what_is_off():
    def notes(*words):
        done = chart.run_helm("install", "r", chart.CHART, "--dry-run=client", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    text = notes()
    assert "r-annulus.default.svc.cluster.local:7070" in text
    assert text.count("WARNING") == 2
    assert "tls.mode is disabled" in text and "nobody is asked who they are" in text
    off = "networkPolicy.enabled=false,podDisruptionBudget.enabled=false,pools.cpu.hostNetwork=true"
    text = notes("--set", off)
    assert text.count("WARNING") == 5 and "pool cpu uses its nodes' network" in text
    assert "WARNING" not in notes("-f", chart.CHART / "ci" / "cert-manager-values.yaml")
    text = notes("--set", "service.type=NodePort,pools.gpu.replicas=1")
    assert "networkPolicy.clients lets this namespace alone in, and so nobody from outside" in text
    assert "by the NodePort." in text and "Pools: cpu, gpu." in text
    text = notes("--set", "monitoring.rules.enabled=true")
    assert text.count("WARNING") == 3
    assert 'series with job="r",namespace="default"' in text
    for known in ("serviceMonitor.enabled=true", "rules.selector.job=x"):
        text = notes("--set", f"monitoring.rules.enabled=true,monitoring.{known}")
        assert text.count("WARNING") == 2
    clients = "networkPolicy.clients[0].ipBlock.cidr=10.0.0.0/8"
    text = notes("--set", f"service.type=NodePort,{clients}")
    assert "lets this namespace alone in" not in text and "Pools:" not in text


def test_notes_and_pages_replace_workers_one_by_one():
    done = chart.run_helm("install", "r", chart.CHART, "--dry-run=client", "--namespace", "ns")
    runbook = (chart.ROOT / "docs" / "pages" / "kubernetes.md").read_text()
    for text in (done.stdout.partition("NOTES:")[2], runbook):
        deletes = [
            line.strip() for line in text.splitlines() if "kubectl" in line and "delete" in line
        ]
        assert deletes and all(line.endswith("delete $pod") for line in deletes)
        assert "wait --for=condition=Ready $pod" in text


def test_services_have_the_family_that_processes_listen_at():
    for family, said in (("IPv6", ["IPv6"]), ("IPv4", None)):
        rendered = chart.render({"ipFamily": family})
        services = [one["spec"] for one in rendered if one["kind"] == "Service"]
        assert [one.get("ipFamilies") for one in services] == 3 * [said]


def test_workers_on_their_nodes_network_are_let_in():
    rendered = chart.render(chart.CHART / "ci" / "gpu-values.yaml")
    nodes = {"ipBlock": {"cidr": "10.0.0.0/16"}}
    coordinator = chart.find(rendered, "NetworkPolicy", "-coordinator")["spec"]
    by_port = {rule["ports"][0]["port"]: rule["from"] for rule in reversed(coordinator["ingress"])}
    assert nodes in by_port[7100] and nodes in by_port[7070] and nodes not in by_port[7071]
    for of in ("-coordinator", "-worker"):
        policy = chart.find(rendered, "NetworkPolicy", of)["spec"]
        assert nodes in policy["egress"][0]["to"]
        assert nodes in policy["ingress"][0]["from"]
    default = chart.find(chart.render(), "NetworkPolicy", "-worker")["spec"]
    assert "ipBlock" not in str(default)
