"""Values that contradict one another are refused, and those that only look so are taken."""

import pytest
from refused import check_together, error_of

import chart

VOLUME = {"name": "x", "emptyDir": {}}

# Values that contradict one another, and words of the error.
TOGETHER = [
    *(
        ({"worker": {key: size}}, f"pools.cpu.{key}: {size}; expected 1 to ")
        for key, size in (
            ("kvBytes", "0Gi"),
            ("kvBytes", "0.0001"),
            ("kvBytes", "8192Pi"),
            ("kvBytes", "16777216Ti"),
            ("kvBytes", 20 * "9"),
            ("uploadBytes", "0Ki"),
            ("uploadBytes", "2048Pi"),
            ("drainRate", "0Mi"),
            ("shmSize", "0"),
        )
    ),
    *(
        ({"coordinator": {key: size}}, f"coordinator.{key}: {size}; expected 1 to ")
        for key, size in (("inFlightBytes", "0"), ("requestBytes", "0Mi"), ("bufferBytes", "2Pi"))
    ),
    *(
        (
            {"worker": {"resources": {"requests": None, "limits": {"memory": memory}}}},
            f"pools.cpu.resources.limits.memory: {memory}; expected at least 1",
        )
        for memory in ("1073741824000m", "1000000u", "1024Ki", "1.5")
    ),
    *(
        ({part: values}, f"{path}.{message}; expected another")
        for part, path in (("coordinator", "coordinator"), ("worker", "pools.cpu"))
        for values, message in (
            ({"extraVolumes": [{**VOLUME, "name": "config"}]}, "extraVolumes.0.name: config"),
            ({"extraVolumes": [VOLUME, VOLUME]}, "extraVolumes.1.name: x"),
            ({"extraContainers": [{"name": part}]}, f"extraContainers.0.name: {part}"),
            (
                {"extraContainers": [{"name": "x"}], "initContainers": [{"name": "x"}]},
                "initContainers.0.name: x",
            ),
            (
                {
                    "extraVolumes": [VOLUME],
                    "extraVolumeMounts": [{"name": "x", "mountPath": "/etc/annulus/config/"}],
                },
                "extraVolumeMounts.0.mountPath: /etc/annulus/config",
            ),
        )
    ),
    (
        {"worker": {"extraVolumeMounts": [{"name": "x", "mountPath": "/x"}]}},
        "pools.cpu.extraVolumeMounts.0.name: x; expected a volume of pools.cpu.extraVolumes",
    ),
    ({"network": {"firstPort": 7200}}, "network.lastPort: 7163; expected at least"),
    ({"network": {"firstPort": 7000}}, "network.firstPort: the range holds port 7070"),
    (
        {"coordinator": {"inFlightBytes": "256Mi"}},
        "coordinator.requestBytes: 512Mi; "
        "expected at most half of coordinator.inFlightBytes, 256Mi",
    ),
    (
        {"coordinator": {"requestBytes": "1025Mi", "inFlightBytes": "2050Mi"}},
        "coordinator.requestBytes: 1025Mi; expected at most half of coordinator.bufferBytes, 2Gi",
    ),
    (
        {"coordinator": {"bufferBytes": "31Mi", "requestBytes": "1Mi"}},
        "coordinator.bufferBytes: 31Mi; expected at least 32Mi",
    ),
    (
        {"coordinator": {"bufferBytes": "3Gi"}},
        "coordinator.resources.limits.memory: 4Gi; expected at least 5100273664 bytes",
    ),
    (
        {"coordinator": {"inFlightBytes": "1281Mi"}},
        "coordinator.resources.limits.memory: 4Gi; expected at least 4296015872 bytes",
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
        {"worker": {"autoscaling": {"enabled": True}}},
        "pools.cpu.autoscaling.query: empty; expected one, or monitoring.serviceMonitor.enabled",
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
    ({"pools": {"cpu": {"gpus": 1}}}, "pools.cpu.gpus: 1 with backend cpu; expected 0, or"),
    *(
        ({"service": values}, f"service.{key}: {shown} with service.type {kind}; expected none, or")
        for values, key, shown, kind in (
            ({"nodePort": 30070}, "nodePort", "30070", "ClusterIP"),
            ({"externalTrafficPolicy": "Local"}, "externalTrafficPolicy", "Local", "ClusterIP"),
            ({"loadBalancerClass": "a"}, "loadBalancerClass", "a", "ClusterIP"),
            (
                {"type": "NodePort", "loadBalancerClass": "a"},
                "loadBalancerClass",
                "a",
                "NodePort",
            ),
            (
                {"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]},
                "loadBalancerSourceRanges",
                "[10.0.0.0/8]",
                "NodePort",
            ),
        )
    ),
    (
        {"network": {"heartbeatMs": 501}},
        "network.heartbeatTimeoutMs: 1000; expected at least twice network.heartbeatMs, 501",
    ),
    (
        {"coordinator": {"resources": {"requests": {"memory": "5Gi"}}}},
        "coordinator.resources.requests.memory: 5Gi; expected at most its limit, 4Gi",
    ),
    (
        {"worker": {"resources": {"limits": {"cpu": "900m"}}}},
        "pools.cpu.resources.requests.cpu: 1; expected at most its limit, 900m",
    ),
    (
        {"worker": {"dnsPolicy": "None"}},
        "pools.cpu.dnsConfig.nameservers: empty; expected some, for dnsPolicy None",
    ),
    (
        {"monitoring": {"serviceMonitor": {"enabled": True, "interval": "5s"}}},
        "monitoring.serviceMonitor.scrapeTimeout: 10s; expected at most",
    ),
    ({"coordinator": {"cluster": "h100"}}, 'coordinator.cluster: "h100"; expected one of h100x8'),
    ({"coordinator": {"cluster": "{a"}}, "coordinator.cluster: invalid character"),
]


@pytest.mark.parametrize(("values", "message"), TOGETHER, ids=lambda one: str(one)[:60])
def test_together(values, message):
    check_together(values, message)


def test_lists_that_take_less_memory_leave_it_to_calls():
    chart.render({"coordinator": {"inFlightBytes": "1536Mi", "options": {"list-cache-bytes": 0}}})


def test_scaling_by_a_query_of_ones_own_wants_no_service_monitor():
    chart.render({"worker": {"autoscaling": {"enabled": True, "query": "sum(x)"}}})


def test_requests_below_their_limits_are_taken():
    for requests, limits in (("1500m", 2), (0.5, "500m"), ("999Mi", "1Gi"), ("1G", "1Gi")):
        resources = {"requests": {"example.org/a": requests}, "limits": {"example.org/a": limits}}
        chart.render({"worker": {"resources": resources}})


def test_kv_in_the_memory_of_gpus_needs_none_of_the_host():
    gpu = {"backend": "cuda", "gpus": 1, "kvBytes": "100Gi"}
    chart.render({"pools": {"gpu": gpu}})
    in_host = {"pools": {"gpu": {**gpu, "kvMemory": "host"}}}
    assert "pools.gpu.resources.limits.memory" in error_of(in_host, chart.NEWEST)


@pytest.mark.parametrize("memory", ["2Ei", "4294967296000m", 4294967296, "4.5G"])
def test_quantities_as_kubernetes_writes_them(memory):
    limits = {"resources": {"limits": {"memory": memory}}}
    for version in chart.VERSIONS:
        chart.render({"worker": limits, "coordinator": limits}, version=version)
