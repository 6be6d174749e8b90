"""Values that the schema refuses, but those of tls and auth."""

import pytest
from refused import check_by_the_schema

import chart

VOLUME = {"name": "x", "emptyDir": {}}

# (what is refused, path as the error names it)
SCHEMA = [
    ({"replicas": 2}, "replicas"),
    ({"image": {"digest": "sha256:12"}}, "image.digest"),
    ({"image": {"repository": ""}}, "image.repository"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy"),
    ({"image": {"repository": "annulus:1"}}, "image.repository"),
    *(
        ({"image": {"registry": registry}}, "image.registry")
        for registry in ("https://reg.example.org", "reg.example.org/", "reg example", "reg:port")
    ),
    ({"global": {"imageRegistry": "https://reg.example.org"}}, "global.imageRegistry"),
    ({"global": {"imagePullSecrets": "x"}}, "global.imagePullSecrets"),
    ({"global": "x"}, "global"),
    ({"imagePullSecrets": ["pull"]}, "imagePullSecrets.0"),
    ({"imagePullSecrets": [{"name": "a", "namespace": "b"}]}, "imagePullSecrets.0"),
    ({"nameOverride": "a.b"}, "nameOverride"),
    ({"clusterDomain": "a..b"}, "clusterDomain"),
    ({"service": {"appProtocol": "a: b"}}, "service.appProtocol"),
    ({"service": {"loadBalancerClass": "a: b"}}, "service.loadBalancerClass"),
    ({"coordinator": {"dataHosts": ["a,b"]}}, "coordinator.dataHosts.0"),
    (
        {"coordinator": {"options": {"audit-log": "a\nlisten = b"}}},
        "coordinator.options.audit-log",
    ),
    (
        {
            "worker": {
                "extraVolumes": [VOLUME],
                "extraVolumeMounts": [{"name": "x", "mountPath": "x"}],
            }
        },
        "worker.extraVolumeMounts.0.mountPath",
    ),
    *(
        ({"networkPolicy": {"nodeCidrs": [cidr]}}, "networkPolicy.nodeCidrs.0")
        for cidr in ("999.0.0.1/99", "10.0.0.0/33", "010.0.0.0/8", ":::/4", "fd00::/129")
    ),
    ({"networkPolicy": {"clients": [{}]}}, "networkPolicy.clients.0"),
    (
        {"networkPolicy": {"clients": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}},
        "networkPolicy.clients.0.ipBlock.cidr",
    ),
    (
        {"networkPolicy": {"dns": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}},
        "networkPolicy.dns.0",
    ),
    (
        {"networkPolicy": {"scrapers": [{"podSelector": {"matchLabel": {"a": "b"}}}]}},
        "networkPolicy.scrapers.0.podSelector",
    ),
    ({"ipFamily": "ipv4"}, "ipFamily"),
    ({"clusterDomain": ""}, "clusterDomain"),
    ({"fullnameOverride": "Annulus"}, "fullnameOverride"),
    ({"fullnameOverride": "1abc"}, "fullnameOverride"),
    ({"fullnameOverride": "a.b"}, "fullnameOverride"),
    ({"network": {"firstPort": 80}}, "network.firstPort"),
    ({"network": {"transports": "tcp rc"}}, "network.transports"),
    ({"service": {"type": "External"}}, "service.type"),
    ({"service": {"port": 70000}}, "service.port"),
    ({"service": {"annotations": {"a": 1}}}, "service.annotations.a"),
    (
        {"service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.1"]}},
        "service.loadBalancerSourceRanges.0",
    ),
    ({"coordinator": {"replicas": 2}}, "coordinator"),
    ({"coordinator": {"recoverySeconds": "60s"}}, "coordinator.recoverySeconds"),
    ({"coordinator": {"inFlightBytes": "4GB"}}, "coordinator.inFlightBytes"),
    ({"coordinator": {"options": {"contexts-max": [1]}}}, "coordinator.options.contexts-max"),
    ({"coordinator": {"extraArgs": "--evict"}}, "coordinator.extraArgs"),
    ({"coordinator": {"nodeSelector": {"gpu": True}}}, "coordinator.nodeSelector.gpu"),
    ({"coordinator": {"extraEnv": [{"name": "A", "value": 1}]}}, "coordinator.extraEnv.0.value"),
    ({"coordinator": {"extraEnv": [{"name": "A", "valu": "1"}]}}, "coordinator.extraEnv.0"),
    ({"coordinator": {"extraEnv": [{"value": "1"}]}}, "coordinator.extraEnv.0"),
    ({"worker": {"extraEnv": [{"name": "A", "value": True}]}}, "worker.extraEnv.0.value"),
    ({"pools": {"cpu": {"backend": None}}}, "pools.cpu.backend"),
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
    ({"commonLabels": {"team": "long context"}}, "commonLabels.team"),
    ({"commonAnnotations": {"the team": "a"}}, "commonAnnotations"),
    ({"worker": {"podLabels": {"a": 64 * "a"}}}, "worker.podLabels.a"),
    ({"worker": {"tolerations": [{"key": "a", "efect": "NoExecute"}]}}, "worker.tolerations.0"),
    ({"test": {"tolerations": [{"operator": "In"}]}}, "test.tolerations.0.operator"),
    ({"worker": {"hostAliases": [{"hostnames": ["a"]}]}}, "worker.hostAliases.0"),
    ({"worker": {"dnsConfig": {"nameserver": "10.0.0.1"}}}, "worker.dnsConfig"),
    ({"worker": {"extraEnvFrom": [{"configMapRef": {}}]}}, "worker.extraEnvFrom.0.configMapRef"),
    ({"worker": {"extraVolumeMounts": [{"name": "a"}]}}, "worker.extraVolumeMounts.0"),
    ({"worker": {"resources": {"limits": {"cpu": "many"}}}}, "worker.resources.limits.cpu"),
    ({"networkPolicy": {"clients": [{"podselector": {}}]}}, "networkPolicy.clients.0"),
    ({"probes": {"readiness": {"failureThresold": 2}}}, "probes.readiness"),
    ({"probes": {"readiness": {"periodSeconds": "3s"}}}, "probes.readiness.periodSeconds"),
    (
        {"probes": {"readiness": {"terminationGracePeriodSeconds": 5}}},
        "probes.readiness",
    ),
    ({"probes": {"liveness": {"successThreshold": 2}}}, "probes.liveness.successThreshold"),
    ({"networkPolicy": {"clients": {"podSelector": {}}}}, "networkPolicy.clients"),
    ({"networkPolicy": {"nodeCidrs": ["10.0.0.1"]}}, "networkPolicy.nodeCidrs.0"),
    ({"podDisruptionBudget": {"maxUnavailable": "half"}}, "podDisruptionBudget.maxUnavailable"),
    ({"extraObjects": {}}, "extraObjects"),
]


@pytest.mark.parametrize("version", chart.VERSIONS)
@pytest.mark.parametrize(("values", "path"), SCHEMA, ids=str)
def test_by_the_schema(values, path, version):
    check_by_the_schema(values, path, version)
