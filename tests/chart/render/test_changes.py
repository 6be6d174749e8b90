"""Every value of the chart changes what is rendered, and each is in values.yaml with a comment."""

import concurrent.futures
import functools
import json
import sys

import chart

sys.path.insert(0, str(chart.ROOT / "helm"))
import values_table

SECRET = {"tls": {"mode": "secret", "coordinatorSecret": "c"}}
ISSUER = {"tls": {"mode": "cert-manager", "certManager": {"issuerRef": {"name": "i"}}}}
TOKENS = {
    **SECRET,
    "auth": {
        "enabled": True,
        "config": {"tokens": [{"name": "w", "sha256": 64 * "a", "role": "worker"}]},
        "workerToken": {"existingSecret": "w"},
    },
}
MONITORED = {
    "monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "rules", "dashboards")}
}
ROUTED = {"route": {"enabled": True, "parentRefs": [{"name": "gateway"}]}}
# Tokens of which the chart sees nothing.
HIDDEN = {
    **SECRET,
    "auth": {"enabled": True, "existingSecret": "a", "workerToken": {"existingSecret": "w"}},
}
PROJECTED = chart.merged(HIDDEN, {"auth": {"workerToken": {"source": "projected"}}})
JWKS = '{"keys": []}'
JWT = {"jwks": "jwks.json", "issuer": "i", "audience": "annulus"}
VOLUME = {"extraVolumes": [{"name": "x", "emptyDir": {}}]}
BENCHMARKED = {"benchmark": {"enabled": True, "image": "bench"}}

# What else must be said for a value to mean anything: by the longest prefix of its path.
WHERE = {
    "tls": SECRET,
    "tls.mode": {"tls": {**ISSUER["tls"], "coordinatorSecret": "c"}},
    "tls.certManager": ISSUER,
    "auth": TOKENS,
    "auth.jwks": chart.merged(TOKENS, {"auth": {"config": {"jwt": JWT}, "jwks": JWKS}}),
    "auth.workerToken.source": HIDDEN,
    "auth.workerToken.audience": PROJECTED,
    "auth.workerToken.expirationSeconds": PROJECTED,
    "auth.existingSecret": HIDDEN,
    "coordinator.extraVolumeMounts": {"coordinator": VOLUME},
    "worker.extraVolumeMounts": {"worker": VOLUME},
    "worker.gpuResource": {"worker": {"backend": "cuda", "gpus": 1}},
    "worker.gpus": {"worker": {"backend": "cuda", "resourceClaims": [{"name": "a"}]}},
    "worker.backend": {"worker": {"resourceClaims": [{"name": "a"}]}},
    "service.nodePort": {"service": {"type": "NodePort"}},
    "service.externalTrafficPolicy": {"service": {"type": "NodePort"}},
    "service.loadBalancerClass": {"service": {"type": "LoadBalancer"}},
    "service.loadBalancerSourceRanges": {"service": {"type": "LoadBalancer"}},
    "worker.hostNetwork": {"networkPolicy": {"nodeCidrs": ["10.0.0.0/8"]}},
    "worker.autoscaling": {**MONITORED, "worker": {"autoscaling": {"enabled": True}}},
    "monitoring": MONITORED,
    "route": ROUTED,
    "benchmark": BENCHMARKED,
    "test.tokenSecret": TOKENS,
}
# Other values, where one more, the opposite or "x" is none, or not in its place.
OTHER = {
    "clusterDomain": "example.org",
    "ipFamily": "IPv6",
    "image.digest": "sha256:" + 64 * "1",
    "image.pullPolicy": "Always",
    "tls.mode": "secret",
    "tls.certManager.issuerRef": {"name": "i", "kind": "ClusterIssuer"},
    "tls.certManager.duration": "1000h",
    "tls.certManager.renewBefore": "1h",
    "auth.config": {"tokens": [{"name": "w", "sha256": 64 * "b", "role": "worker"}]},
    "auth.jwks": '{"keys": [{}]}',
    "auth.workerToken.source": "projected",
    "coordinator.cluster": "h100x8",
    "coordinator.logLevel": "debug",
    "coordinator.dnsPolicy": "Default",
    "coordinator.options": {"contexts-max": 1000},
    "coordinator.inFlightBytes": "1152Mi",
    "coordinator.bufferBytes": "1Gi",
    "coordinator.requestBytes": "1Mi",
    "service.type": "NodePort",
    "service.nodePort": 30070,
    "service.loadBalancerSourceRanges": ["10.0.0.0/8"],
    "service.externalTrafficPolicy": "Local",
    "worker.logLevel": "debug",
    "worker.backend": "cuda",
    "worker.gpus": 1,
    "worker.gpuResource": "amd.com/gpu",
    "worker.image": {"tag": "x"},
    "worker.kvBytes": "512Mi",
    "worker.kvMemory": "host",
    "worker.uploadBytes": "1Mi",
    "worker.drainRate": "1Mi",
    "worker.shmSize": "1Mi",
    "worker.dnsPolicy": "Default",
    "worker.options": {"place": 1},
    "worker.resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}],
    "worker.autoscaling.prometheusAddress": "http://x",
    "pools.cpu": {"replicas": 7},
    "networkPolicy.dnsPorts": [5353],
    "networkPolicy.nodeCidrs": ["10.0.0.0/8"],
    "monitoring.serviceMonitor.interval": "20s",
    "monitoring.serviceMonitor.scrapeTimeout": "4s",
    "monitoring.rules.disabled": ["AnnulusInsecure"],
    "monitoring.rules.runbookUrl": "https://x",
    "route.kind": "GRPCRoute",
}
STRINGS = (
    "extraArgs",
    "extraDnsNames",
    "dataHosts",
    "hostnames",
    "args",
)
# Values of Kubernetes' own types, by the last key of their paths.
TYPED = {
    "tolerations": [{"operator": "Exists"}],
    "hostAliases": [{"ip": "10.0.0.1"}],
    "extraEnvFrom": [{"prefix": "x"}],
    "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
    "dnsConfig": {"searches": ["x"]},
    "clients": [{"namespaceSelector": {}}],
    "scrapers": [{"namespaceSelector": {}}],
    "dns": [{"namespaceSelector": {}}],
}
NONE = {
    "global": "other charts' values; test_render tells what is read of it",
    "auth.enabled": "refused without what it asks for, and this without it; test_refused_auth",
    "tls.allowChange": "what upgrades may do; test_upgrade",
}


def leaves(values, path=""):
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        commented = here in DESCRIBED
        if isinstance(value, dict) and value and not commented:
            yield from leaves(value, here)
        elif here == "pools":
            yield "pools.cpu", value["cpu"]
        else:
            yield here, value


def other(path, value):
    if path in OTHER:
        return OTHER[path]
    if path.rpartition(".")[2] in TYPED:
        return TYPED[path.rpartition(".")[2]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return "x"
    if isinstance(value, list):
        return ["x"] if path.endswith(STRINGS) else [{"name": "x"}]
    if path.endswith(("esources",)):
        return {"limits": {"cpu": 7}}
    if path.startswith("probes"):
        return {"initialDelaySeconds": 7}
    return {"x": "x"}


def said(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@functools.cache
def template(values):
    return chart.template(json.loads(values))


def at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


def where(path):
    known = [prefix for prefix in WHERE if path == prefix or path.startswith(prefix + ".")]
    return WHERE[max(known, key=len)] if known else {}


DESCRIBED = {path for path, _, _ in values_table.rows((chart.CHART / "values.yaml").read_text())}


def test_every_value_changes_something():
    defaults = chart.default_values()

    def changes(leaf):
        path, _ = leaf
        base = where(path)
        value = at(chart.merged(defaults, base), path)
        changed = chart.merged(base, said(path, other(path, value)))
        try:
            return path, template(json.dumps(base)) != chart.template(changed)
        except ValueError as error:
            return path, error

    todo = [leaf for leaf in leaves(defaults) if leaf[0] not in NONE]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = dict(pool.map(changes, todo))
    assert len(results) > 150
    assert {path: why for path, why in results.items() if why is not True} == {}


def test_every_value_has_a_comment_and_a_schema():
    schema = json.loads((chart.CHART / "values.schema.json").read_text())

    def properties(part, path=""):
        if "$ref" in part:
            part = schema["definitions"][part["$ref"].rpartition("/")[2]]
        for key, inner in part.get("properties", {}).items():
            here = f"{path}.{key}" if path else key
            yield here
            if here not in DESCRIBED:
                yield from properties(inner, here)

    known = set(properties(schema)) - {"enabled"}  # a parent's condition
    groups = {path.rpartition(".")[0] for path in known}
    leaf = {path for path in known if path not in groups}
    assert leaf == DESCRIBED


# What draft-07 and 2020-12 have both and mean alike. Helm up to 3.17 reads schemas as draft-07 and
# passes over what it does not know.
KEYWORDS = {
    "$ref",
    "$schema",
    "additionalProperties",
    "definitions",
    "description",
    "enum",
    "if",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minLength",
    "minProperties",
    "minimum",
    "pattern",
    "patternProperties",
    "properties",
    "required",
    "then",
    "title",
    "type",
}


def test_the_schema_means_the_same_to_every_helm():
    def check(part):
        assert part.keys() <= KEYWORDS, part
        assert "$ref" not in part or len(part) == 1  # draft-07 passes over what is beside it
        for group in ("properties", "patternProperties", "definitions"):
            for inner in part.get(group, {}).values():
                check(inner)
        for word in ("items", "additionalProperties", "if", "then"):
            if isinstance(part.get(word), dict):
                check(part[word])

    check(json.loads((chart.CHART / "values.schema.json").read_text()))
