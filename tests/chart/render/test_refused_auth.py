"""Certificates, tokens and callers that cannot work are refused."""

import pytest
from refused import SECRET, TOKENS, check_by_the_schema, check_together

import chart

WORKER = {"name": "w", "sha256": 64 * "a", "role": "worker"}
CONFIG = {"tokens": [WORKER]}
READERS = {"tokens": [{**WORKER, "role": "reader"}]}
BY_SECRET = {"workerToken": {"existingSecret": "w"}}
JWT = {"jwks": "jwks.json", "issuer": "i", "audience": "annulus"}
JWKS = '{"keys": []}'

# (what is refused, path as the error names it)
SCHEMA = [
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
]

# Values that contradict one another, and words of the error.
TOGETHER = [
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
]


@pytest.mark.parametrize("version", chart.VERSIONS)
@pytest.mark.parametrize(("values", "path"), SCHEMA, ids=str)
def test_by_the_schema(values, path, version):
    check_by_the_schema(values, path, version)


@pytest.mark.parametrize(("values", "message"), TOGETHER, ids=lambda one: str(one)[:60])
def test_together(values, message):
    check_together(values, message)


def test_roles_that_let_workers_in_are_taken():
    for role in ("role", {"claim": "role"}, {"claim": "sub", "map": {"a": "worker"}}):
        config = {"jwt": {**JWT, "claims": {"role": role}}}
        for token in ({"existingSecret": "w"}, {"source": "projected"}):
            auth = {"enabled": True, "config": config, "jwks": JWKS, "workerToken": token}
            chart.render({"tls": SECRET, "auth": auth})
    config = {"certificates": [{"name": "w", "role": "admin"}]}
    auth = {"enabled": True, "config": config, "workerToken": {"source": "none"}}
    chart.render({"tls": {**SECRET, "requireClientCertificates": True}, "auth": auth})
