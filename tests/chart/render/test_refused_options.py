"""Options and variables that the chart sets itself, or that no command takes, are refused."""

import pytest
from refused import SECRET, TOKENS, check_together

import chart

# Values that contradict one another, and words of the error.
TOGETHER = [
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
            ("in-flight-max", 0, "0", "an integer from 1 to 10000"),
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
    (
        {"worker": {"extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {}}}]}},
        "pools.cpu.extraEnv.0.valueFrom: given with value; expected one of them",
    ),
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


@pytest.mark.parametrize(("values", "message"), TOGETHER, ids=lambda one: str(one)[:60])
def test_together(values, message):
    check_together(values, message)


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
