"""Values that cannot work are refused before anything is rendered, and the error names their path.

Helm 3.17 and 4.3 spell paths differently ("tls.mode", "/tls/mode"); the words are compared without
what they put between them.
"""

import re

import pytest

import chart

SECRET = {"mode": "secret", "coordinatorSecret": "c"}
TOKENS = {"enabled": True, "existingSecret": "a", "workerToken": {"existingSecret": "w"}}

# (what is refused, path as the error names it)
SCHEMA = [
    ({"replicas": 2}, "replicas"),
    ({"tls": {"mode": False}}, "tls.mode"),  # YAML's `mode: off`
    ({"tls": {"mode": "on"}}, "tls.mode"),
    ({"tls": {"cert": "x"}}, "tls"),
    ({"tls": {"reloadSeconds": 0}}, "tls.reloadSeconds"),
    ({"tls": {"certManager": {"duration": "90 days"}}}, "tls.certManager.duration"),
    ({"auth": {"enabled": "yes"}}, "auth.enabled"),
    ({"auth": {"config": "{}"}}, "auth.config"),
    ({"auth": {"workerToken": {"source": "file"}}}, "auth.workerToken.source"),
    ({"auth": {"workerToken": {"expirationSeconds": 60}}}, "auth.workerToken.expirationSeconds"),
    ({"image": {"digest": "sha256:12"}}, "image.digest"),
    ({"image": {"repository": ""}}, "image.repository"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy"),
    ({"imagePullSecrets": ["pull"]}, "imagePullSecrets.0"),
    ({"ipFamily": "ipv4"}, "ipFamily"),
    ({"clusterDomain": ""}, "clusterDomain"),
    ({"fullnameOverride": "Annulus"}, "fullnameOverride"),
    ({"network": {"firstPort": 80}}, "network.firstPort"),
    ({"network": {"transports": "tcp rc"}}, "network.transports"),
    ({"service": {"type": "External"}}, "service.type"),
    ({"service": {"port": 70000}}, "service.port"),
    ({"service": {"annotations": {"a": 1}}}, "service.annotations.a"),
    ({"coordinator": {"replicas": 2}}, "coordinator"),
    ({"coordinator": {"recoverySeconds": "60s"}}, "coordinator.recoverySeconds"),
    ({"coordinator": {"inFlightBytes": "4GB"}}, "coordinator.inFlightBytes"),
    ({"coordinator": {"options": {"contexts-max": [1]}}}, "coordinator.options.contexts-max"),
    ({"coordinator": {"extraArgs": "--evict"}}, "coordinator.extraArgs"),
    ({"coordinator": {"nodeSelector": {"gpu": True}}}, "coordinator.nodeSelector.gpu"),
    ({"worker": {"replicas": -1}}, "worker.replicas"),
    ({"worker": {"backend": "gpu"}}, "worker.backend"),
    ({"worker": {"kvBytes": "lots"}}, "worker.kvBytes"),
    ({"worker": {"gpus": 2}}, "worker.gpus"),
    ({"worker": {"threads": 1.5}}, "worker.threads"),
    ({"worker": {"updateStrategy": "RollingUpdate"}}, "worker"),
    ({"pools": [{"name": "cpu"}]}, "pools"),
    ({"pools": {"A": {}}}, "pools"),
    ({"pools": {"a" * 21: {}}}, "pools"),
    ({"pools": {"cpu": {"kvByte": "1Gi"}}}, "pools.cpu"),
    ({"networkPolicy": {"clients": {"podSelector": {}}}}, "networkPolicy.clients"),
    ({"networkPolicy": {"nodeCidrs": ["10.0.0.1"]}}, "networkPolicy.nodeCidrs.0"),
    ({"podDisruptionBudget": {"maxUnavailable": "half"}}, "podDisruptionBudget.maxUnavailable"),
    ({"extraObjects": {}}, "extraObjects"),
]

# Values that contradict one another.
TOGETHER = [
    ({"tls": {"mode": "secret"}}, "tls.coordinatorSecret: empty; expected"),
    ({"tls": {"mode": "cert-manager"}}, "tls.certManager.issuerRef.name: empty; expected"),
    ({"tls": {"requireClientCertificates": True}}, "tls.requireClientCertificates: true with"),
    ({"auth": TOKENS}, "auth.enabled: true with tls.mode disabled; expected"),
    ({"tls": SECRET, "auth": {"enabled": True}}, "auth.existingSecret: empty, and auth.config"),
    (
        {"tls": SECRET, "auth": {**TOKENS, "config": {"tokens": []}}},
        "auth.config: given with auth.existingSecret; expected one",
    ),
    (
        {"tls": SECRET, "auth": {"enabled": True, "existingSecret": "a"}},
        "auth.workerToken.existingSecret: empty; expected",
    ),
    (
        {"tls": SECRET, "auth": {"enabled": True, "config": {"jwt": {"jwks": "jwks.json"}}}},
        'auth.config.jwt.jwks: "jwks.json" with auth.jwks empty; expected jwks.json',
    ),
    (
        {"tls": SECRET, "auth": {"enabled": True, "jwks": "{}", "config": {"jwt": {"jwks": "a"}}}},
        'auth.config.jwt.jwks: "a" with auth.jwks given; expected jwks.json',
    ),
    ({"network": {"firstPort": 7200}}, "network.lastPort: 7163; expected at least"),
    ({"network": {"firstPort": 7000}}, "network.firstPort: the range holds port 7070"),
    (
        {"coordinator": {"requestBytes": "2Gi"}},
        "coordinator.requestBytes: 2Gi; expected at most coordinator.inFlightBytes, 1Gi",
    ),
    (
        {"coordinator": {"inFlightBytes": "1537Mi"}},
        "coordinator.resources.limits.memory: 2Gi; expected at least 2148532224",
    ),
    (
        {"coordinator": {"recoverySeconds": 900}},
        "pools.cpu.rejoinSeconds: 900; expected more than coordinator.recoverySeconds, 900",
    ),
    (
        {"pools": {"big": {"kvBytes": "2Gi"}}},
        "pools.big.resources.limits.memory: 2Gi; expected at least 3221225472 bytes",
    ),
    (
        {"pools": {"cpu": {"shmSize": "512Mi"}}},
        "pools.cpu.resources.limits.memory: 2Gi; expected at least 2415919104 bytes",
    ),
    (
        {"pools": {"cpu": {"resources": {"limits": {"memory": None}}}}},
        "pools.cpu.resources.limits.memory: none; expected a limit",
    ),
    (
        {"worker": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
        "pools.cpu.autoscaling.maxReplicas: 8; expected at least minReplicas, 9",
    ),
    (
        {"pools": {"rdma": {"hostNetwork": True}}},
        "networkPolicy.nodeCidrs: empty; expected the addresses of the nodes, since pools.rdma",
    ),
    ({"route": {"enabled": True}}, "route.parentRefs: empty; expected the gateways"),
    ({"benchmark": {"enabled": True}}, "benchmark.image: empty; expected an image"),
    (
        {"monitoring": {"rules": {"disabled": ["AnnulusDown"]}}},
        'monitoring.rules.disabled: "AnnulusDown" is no alert; expected some of Annulus',
    ),
    ({"pools": {"gpu": {"backend": "cuda"}}}, "pools.gpu.gpus: 0 with backend cuda; expected"),
]


def error_of(values, version):
    with pytest.raises(ValueError) as error:
        chart.render(values, version=version)
    return str(error.value)


@pytest.mark.parametrize("version", chart.VERSIONS)
@pytest.mark.parametrize(("values", "path"), SCHEMA, ids=str)
def test_by_the_schema(values, path, version):
    error = error_of(values, version)
    found = re.findall(r"^- (?:at )?(\S+?):? ", error, re.MULTILINE)
    paths = {one.strip("'/:").replace("/", ".").replace("(root)", "") for one in found}
    parent = path.rpartition(".")[0]
    assert path in paths or (parent in paths and path.rpartition(".")[2] in error), error


@pytest.mark.parametrize(("values", "message"), TOGETHER, ids=lambda one: str(one)[:60])
def test_together(values, message):
    for version in chart.VERSIONS:
        assert message in error_of(values, version)


def test_kv_in_the_memory_of_gpus_needs_none_of_the_host():
    gpu = {"backend": "cuda", "gpus": 1, "kvBytes": "100Gi"}
    chart.render({"pools": {"gpu": gpu}})
    in_host = {"pools": {"gpu": {**gpu, "kvMemory": "host"}}}
    assert "pools.gpu.resources.limits.memory" in error_of(in_host, chart.NEWEST)
