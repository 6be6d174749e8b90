"""Values that cannot work are refused before anything is rendered, and the error names their path.

Helm 3.17 and 4.3 spell paths differently ("tls.mode", "/tls/mode"); the words are compared without
what they put between them.
"""

import re

import pytest

import chart

SECRET = {"mode": "secret", "coordinatorSecret": "c"}
TOKENS = {"enabled": True, "existingSecret": "a", "workerToken": {"existingSecret": "w"}}
WORKER = {"name": "w", "sha256": 64 * "a", "role": "worker"}
CONFIG = {"tokens": [WORKER]}
READERS = {"tokens": [{**WORKER, "role": "reader"}]}
BY_SECRET = {"workerToken": {"existingSecret": "w"}}
JWT = {"jwks": "jwks.json", "issuer": "i", "audience": "annulus"}
JWKS = '{"keys": []}'
VOLUME = {"name": "x", "emptyDir": {}}

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
    *(
        ({"auth": {"config": config}}, f"auth.config{path}")
        for config, path in (
            ({"token": [WORKER]}, ""),
            ({"tokens": WORKER}, ".tokens"),
            ({"tokens": [{**WORKER, "token": "secret"}]}, ".tokens.0"),
            ({"tokens": [{**WORKER, "sha256": "12"}]}, ".tokens.0.sha256"),
            ({"tokens": [{**WORKER, "role": "root"}]}, ".tokens.0.role"),
            ({"tokens": [{**WORKER, "tenant": 129 * "a"}]}, ".tokens.0.tenant"),
            ({"tokens": [{"sha256": 64 * "a", "role": "worker"}]}, ".tokens.0.name"),
            ({"certificates": [{"name": "", "role": "worker"}]}, ".certificates.0.name"),
            ({"jwt": {"jwks": "jwks.json", "audience": "a"}}, ".jwt.issuer"),
            ({"jwt": {**JWT, "leeway": 5}}, ".jwt"),
            ({"jwt": {**JWT, "claims": {"roles": "sub"}}}, ".jwt.claims"),
            (
                {"jwt": {**JWT, "claims": {"role": {"claim": "sub", "map": {"a": "wrker"}}}}},
                ".jwt.claims.role.map.a",
            ),
            ({"quotas": {"lab": {"kv_bytes_max": "8Gi"}}}, ".quotas.lab.kv_bytes_max"),
            ({"quotas": {"lab": {"kv_bytes_max": -1}}}, ".quotas.lab.kv_bytes_max"),
            ({"quotas": {"lab": {"kv_max": 1}}}, ".quotas.lab"),
        )
    ),
    ({"auth": {"workerToken": {"source": "file"}}}, "auth.workerToken.source"),
    ({"auth": {"workerToken": {"expirationSeconds": 60}}}, "auth.workerToken.expirationSeconds"),
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

# Values that contradict one another.
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
    ({"tls": {"coordinatorSecret": "c"}}, "tls.coordinatorSecret: c with tls.mode disabled"),
    ({"tls": {"workerSecret": "c"}}, "tls.workerSecret: c with tls.mode disabled"),
    ({"tls": {"plainData": True}}, "tls.plainData: true with tls.mode disabled"),
    ({"auth": {"config": CONFIG}}, "auth.config: given with auth.enabled false"),
    ({"auth": {"existingSecret": "a"}}, "auth.existingSecret: given with auth.enabled false"),
    ({"auth": {"jwks": JWKS}}, "auth.jwks: given with auth.enabled false"),
    *(
        ({"tls": SECRET, "auth": {"enabled": True, **auth}}, message)
        for auth, message in (
            ({"config": {"tokens": []}}, "auth.config: nobody is known; expected tokens"),
            (
                {"config": {"tokens": [WORKER, {**WORKER, "sha256": 64 * "A"}]}},
                f"auth.config.tokens.1.sha256: {64 * 'a'}; expected one that no other has",
            ),
            (
                {"config": {"tokens": [{**WORKER, "role": "tenant"}]}},
                "auth.config.tokens.0.tenant: none; expected a name, since the role is tenant",
            ),
            (
                {"config": {"certificates": 2 * [{"name": "w", "role": "worker"}]}},
                "auth.config.certificates.1.name: w; expected one that no other has",
            ),
            (
                {"config": {"jwt": {**JWT, "jwks": "keys.json"}}, "jwks": JWKS},
                'auth.config.jwt.jwks: "keys.json" with auth.jwks given; expected jwks.json',
            ),
            (
                {"config": {"jwt": {**JWT, "claims": {"role": {"map": {}}}}}, "jwks": JWKS},
                "auth.config.jwt.claims.role.claim: none; expected a claim's name, or only a",
            ),
            ({"config": CONFIG, "jwks": JWKS}, "auth.jwks: given without auth.config.jwt"),
            ({"config": {"jwt": JWT}, "jwks": "{a"}, "auth.jwks: invalid character"),
            (
                {"config": CONFIG, "workerToken": {"source": "none"}},
                "auth.workerToken.source: none with tls.requireClientCertificates false",
            ),
            (
                {"config": CONFIG, "workerToken": {"source": "projected"}},
                "auth.workerToken.source: projected without auth.config.jwt",
            ),
            (
                {
                    "config": {"jwt": {**JWT, "audience": "others"}},
                    "jwks": JWKS,
                    "workerToken": {"source": "projected"},
                },
                'auth.config.jwt.audience: "others"; expected auth.workerToken.audience, "annulus"',
            ),
            ({"config": READERS, **BY_SECRET}, "auth.config.tokens: none of role worker"),
            (
                {"config": {"jwt": JWT}, "jwks": JWKS, **BY_SECRET},
                "auth.config.tokens: none of role worker",
            ),
            *(
                (
                    {
                        "config": {"jwt": {**JWT, "claims": claims}, **CONFIG},
                        "jwks": JWKS,
                        "workerToken": {"source": "projected"},
                    },
                    "auth.config.jwt.claims.role: makes nobody a worker",
                )
                for claims in (
                    {},
                    {"role": {"default": "tenant"}},
                    {"role": {"claim": "sub", "map": {"a": "reader"}, "default": "tenant"}},
                )
            ),
        )
    ),
    (
        {
            "tls": {**SECRET, "requireClientCertificates": True},
            "auth": {"enabled": True, "config": CONFIG, "workerToken": {"source": "none"}},
        },
        "auth.config.certificates: none of role worker",
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
    ({"tls": {"mode": "secret"}}, "tls.coordinatorSecret: empty; expected"),
    ({"tls": {"mode": "cert-manager"}}, "tls.certManager.issuerRef.name: empty; expected"),
    ({"tls": {"requireClientCertificates": True}}, "tls.requireClientCertificates: true with"),
    ({"auth": TOKENS}, "auth.enabled: true with tls.mode disabled; expected"),
    ({"tls": SECRET, "auth": {"enabled": True}}, "auth.existingSecret: empty, and auth.config"),
    (
        {"tls": SECRET, "auth": {**TOKENS, "config": CONFIG}},
        "auth.config: given with auth.existingSecret; expected one",
    ),
    (
        {"tls": SECRET, "auth": {"enabled": True, "existingSecret": "a"}},
        "auth.workerToken.existingSecret: empty; expected",
    ),
    (
        {"tls": SECRET, "auth": {"enabled": True, "config": {"jwt": JWT}}},
        'auth.config.jwt.jwks: "jwks.json" with auth.jwks empty; expected jwks.json',
    ),
    ({"network": {"firstPort": 7200}}, "network.lastPort: 7163; expected at least"),
    ({"network": {"firstPort": 7000}}, "network.firstPort: the range holds port 7070"),
    (
        {"coordinator": {"inFlightBytes": "256Mi"}},
        "coordinator.requestBytes: 512Mi; expected at most coordinator.inFlightBytes, 256Mi",
    ),
    (
        {"coordinator": {"requestBytes": "1025Mi", "inFlightBytes": "1200Mi"}},
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
    *(
        (
            {"coordinator": said},
            "coordinator.resources.limits.memory: 4Gi; expected at least 4831838208 bytes",
        )
        for said in (
            {"options": {"list-cache-bytes": "1G"}},
            {"extraArgs": ["--list-cache-bytes=1G"]},
            {"extraArgs": ["--list-cache-bytes", "1G"]},
            {"extraEnv": [{"name": "ANNULUS_LIST_CACHE_BYTES", "value": "1073741824"}]},
            {
                "extraEnv": [{"name": "ANNULUS_LIST_CACHE_BYTES", "value": "1G"}],
                "options": {"list-cache-bytes": 0},
            },
        )
    ),
    *(
        (
            {"coordinator": {"options": {option: value}}},
            f"coordinator.options.{option}: {shown}; expected {form}",
        )
        for option, value, shown, form in (
            ("list-cache-bytes", "8Gi", "8Gi", "an integer from 0 to 1125899906842624 (K, M, G"),
            ("contexts-max", "abc", "abc", "an integer from 1 to 16777216 (K, M, G"),
            ("contexts-max", 16777217, "16777217", "an integer from 1 to 16777216"),
            ("in-flight-max", 0, "0", "an integer from 1 to 1048576"),
            ("connections-max", 1.5, "1.5", "an integer from 1 to 1048576"),
            ("client-stall-max", "10s", "10s", "an integer from 1 to 3600"),
            ("client-rate-min", True, "true", "an integer from 1 to"),
            ("layers-max", -1, "-1", "an integer from 1 to 4294967296"),
            ("json", "on", "on", "true or false"),
            ("reflection", 2, "2", "true or false"),
            ("audit-log", True, "true", "a file's path, which begins with /"),
            ("trace-out", "spans.json", "spans.json", "a file's path, which begins with /"),
        )
    ),
    (
        {"pools": {"own": {"options": {"place": -1}}}},
        "pools.own.options.place: -1; expected an integer from 0 to 65536",
    ),
    *(
        ({"coordinator": {"extraArgs": args}}, f"coordinator.extraArgs.{message}")
        for args, message in (
            (["--contexts-max=abc"], "0: --contexts-max: abc; expected an integer from 1 to"),
            (["--contexts-max", "8Gi"], "0: --contexts-max: 8Gi; expected an integer from 1 to"),
            (["--evil", "--contexts-max"], "1: --contexts-max: ; expected an integer from 1 to"),
            (["--json=maybe"], "0: --json=maybe; expected true or false"),
            (["--contexts-max=1", "--contexts-max=2"], "1: --contexts-max=2; expected it once"),
        )
    ),
    (
        {"worker": {"extraEnv": [{"name": "ANNULUS_PLACE", "value": "first"}]}},
        "pools.cpu.extraEnv.0.value: first; expected an integer from 0 to 65536",
    ),
    *(
        (
            {"tls": SECRET, "auth": TOKENS, "coordinator": said},
            "coordinator.options.reflection: true with auth.enabled or tls.requireClientCert",
        )
        for said in (
            {"options": {"reflection": True}},
            {"extraArgs": ["--reflection"]},
            {"extraArgs": ["--reflection=true"]},
            {"extraEnv": [{"name": "ANNULUS_REFLECTION", "value": "yes"}]},
        )
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
    *(
        (
            {"tls": {"mode": "cert-manager", "certManager": {"issuerRef": {"name": "i"}, **times}}},
            f"tls.certManager.{message}",
        )
        for times, message in (
            (
                {"duration": "720h"},
                "duration: 720h; expected more than tls.certManager.renewBefore",
            ),
            ({"duration": "12h", "renewBefore": "719m60s"}, "duration: 12h; expected more than"),
            ({"duration": "59m", "renewBefore": "10m"}, "duration: 59m; expected at least 1h"),
            ({"renewBefore": "60s"}, "renewBefore: 60s; expected at least 5m"),
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
        {"worker": {"extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {}}}]}},
        "pools.cpu.extraEnv.0.valueFrom: given with value; expected one of them",
    ),
    (
        {"monitoring": {"serviceMonitor": {"enabled": True, "interval": "5s"}}},
        "monitoring.serviceMonitor.scrapeTimeout: 10s; expected at most",
    ),
    ({"coordinator": {"cluster": "h100"}}, 'coordinator.cluster: "h100"; expected one of h100x8'),
    ({"coordinator": {"cluster": "{a"}}, "coordinator.cluster: invalid character"),
    (
        {"coordinator": {"options": {"listen": "0.0.0.0:1"}}},
        "coordinator.options.listen; expected none: the chart sets --listen itself",
    ),
    (
        {"coordinator": {"options": {"recovery-s": 5}}},
        "coordinator.options.recovery-s; expected the value coordinator.recoverySeconds in its",
    ),
    (
        {"coordinator": {"options": {"context-max": 5}}},
        "coordinator.options.context-max: no option of annulus coordinator; expected one of audit",
    ),
    (
        {"worker": {"options": {"threads": 5}}},
        "pools.cpu.options.threads; expected the value pools.cpu.threads in its place",
    ),
    (
        {"pools": {"own": {"options": {"contexts-max": 5}}}},
        "pools.own.options.contexts-max: no option of annulus worker; expected one of auth, client",
    ),
    (
        {"coordinator": {"extraArgs": ["--log-level", "debug"]}},
        "coordinator.extraArgs.0: --log-level; expected the value coordinator.logLevel in its",
    ),
    (
        {"worker": {"extraArgs": ["--place=1", "--kv-bytes-limit=1G"]}},
        "pools.cpu.extraArgs.1: --kv-bytes-limit=1G; expected the value pools.cpu.kvBytes in its",
    ),
    (
        {"worker": {"extraArgs": ["--place=1"], "options": {"place": 1}}},
        "pools.cpu.extraArgs.0: --place=1; expected it there or as pools.cpu.options.place, and",
    ),
    (
        {"worker": {"extraEnv": [{"name": "ANNULUS_THREADS", "value": "4"}]}},
        "pools.cpu.extraEnv.0.name: ANNULUS_THREADS; expected the value pools.cpu.threads in its",
    ),
    (
        {"coordinator": {"extraEnv": [{"name": "ANNULUS_LISTEN", "value": "a:1"}]}},
        "coordinator.extraEnv.0.name: ANNULUS_LISTEN; expected none: the chart sets --listen",
    ),
    (
        {"worker": {"extraEnv": [{"name": "POD_IP", "value": "::1"}]}},
        "pools.cpu.extraEnv.0.name: POD_IP; expected another name",
    ),
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


def test_roles_that_let_workers_in_are_taken():
    for role in ("role", {"claim": "role"}, {"claim": "sub", "map": {"a": "worker"}}):
        config = {"jwt": {**JWT, "claims": {"role": role}}}
        for token in ({"existingSecret": "w"}, {"source": "projected"}):
            auth = {"enabled": True, "config": config, "jwks": JWKS, "workerToken": token}
            chart.render({"tls": SECRET, "auth": auth})
    config = {"certificates": [{"name": "w", "role": "admin"}]}
    auth = {"enabled": True, "config": config, "workerToken": {"source": "none"}}
    chart.render({"tls": {**SECRET, "requireClientCertificates": True}, "auth": auth})


def test_options_as_the_program_writes_them_are_taken():
    options = {
        "list-cache-bytes": "256M",
        "contexts-max": 1e6,
        "in-flight-max": "1K",
        "connections-max": 16,
        "audit-log": "/dev/stderr",
        "trace-out": "",
        "json": "T",
        "reflection": False,
    }
    args = ["--client-stall-max", "20", "--an-option-of-tomorrow=x", "--client-rate-min=1M"]
    env = [{"name": "ANNULUS_LAYERS_MAX", "value": ""}]
    for version in chart.VERSIONS:
        values = {"coordinator": {"options": options, "extraArgs": args, "extraEnv": env}}
        chart.render({"tls": SECRET, "auth": TOKENS}, values, version=version)


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
