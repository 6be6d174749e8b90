"""What the specification of a pod asks for, as options of Podman."""

import dataclasses
import math
import re

from fields import Unknown, quantity


@dataclasses.dataclass
class Probe:
    path: str
    port: int
    scheme: str
    period_s: float
    timeout_s: float
    failures_max: int


@dataclasses.dataclass
class ContainerSpec:
    name: str
    image: str
    command: list
    args: list
    environment: list  # functions of the pod that return (name, value)
    ports: dict  # by name
    probes: dict  # by startup, liveness, readiness
    limits: dict
    requests: dict
    options: list  # of podman
    mounts: list  # (volume, path, read only, file in it)


def read_probe(fields, ports):
    with fields:
        with fields.fields("httpGet") as get:
            port = get.need("port")
            probe = Probe(
                get.need("path"),
                ports[port] if isinstance(port, str) else port,
                get.only("scheme", "HTTP", "HTTPS").lower(),
                fields.get("periodSeconds", 10),
                fields.get("timeoutSeconds", 1),
                fields.get("failureThreshold", 3),
            )
        if fields.get("initialDelaySeconds", 0) or fields.get("successThreshold", 1) != 1:
            raise Unknown(f"{fields.path}: a delay or several successes; expected none")
    return probe


def amount(resources, resource, divisor):
    """The value of a resourceFieldRef."""
    kind, name = resource.split(".", 1)
    value = resources[kind].get(name)
    if value is None:
        raise Unknown(f"resourceFieldRef {resource}: none; expected one in the container")
    return str(math.ceil(quantity(value) / quantity(divisor)))


def read_variable(fields, resources):
    """A function of a pod that returns the variable's name and value."""
    with fields:
        name, value = fields.need("name"), fields.get("value")
        if value is not None:
            return lambda pod: (name, value)
        with fields.fields("valueFrom") as source:
            if source.get("fieldRef"):
                with source.fields("fieldRef") as field:
                    field.only("apiVersion", "v1")
                    path = field.only(
                        "fieldPath", "metadata.name", "metadata.namespace", "status.podIP"
                    )
                return lambda pod: (name, pod.fields()[path])
            with source.fields("resourceFieldRef") as field:
                value = amount(resources, field.need("resource"), field.get("divisor", "1"))
            return lambda pod: (name, value)


def security_options(fields, pod):
    """Of a container's securityContext, over the pod's."""
    with fields:
        user = fields.get("runAsUser", pod.get("runAsUser"))
        group = fields.get("runAsGroup", pod.get("runAsGroup", 0))
        if fields.get("runAsNonRoot", pod.get("runAsNonRoot")) and user == 0:
            raise Unknown(f"{fields.path}: root where runAsNonRoot is; expected another user")
        options = ["--read-only-tmpfs=false"]
        if user is not None:
            options.append(f"--user={user}:{group}")
        if pod.get("fsGroup") is not None:
            options.append(f"--group-add={pod.get('fsGroup')}")
        if fields.get("readOnlyRootFilesystem", False):
            options.append("--read-only")
        if not fields.get("allowPrivilegeEscalation", True):
            options.append("--security-opt=no-new-privileges")
        with fields.fields("capabilities") as capabilities:
            options += [f"--cap-drop={one.lower()}" for one in capabilities.get("drop", [])]
            options += [f"--cap-add={one.lower()}" for one in capabilities.get("add", [])]
        profile = fields.fields("seccompProfile") if fields.get("seccompProfile") else None
        with profile or pod.fields("seccompProfile") as seccomp:
            if seccomp.only("type", "Unconfined", "RuntimeDefault") == "Unconfined":
                options.append("--security-opt=seccomp=unconfined")
    return options


def read_container(fields, pod_security):
    with fields:
        fields.only("imagePullPolicy", "IfNotPresent", "Never")
        fields.no_effect("terminationMessagePolicy", "terminationMessagePath")
        ports = {}
        for port in fields.each("ports"):
            with port:
                port.only("protocol", "TCP")
                ports[port.need("name")] = port.need("containerPort")
        probes = {
            name: read_probe(fields.fields(name + "Probe"), ports)
            for name in ("startup", "liveness", "readiness")
            if fields.get(name + "Probe")
        }
        with fields.fields("resources") as resources:
            limits, requests = resources.get("limits", {}), resources.get("requests", {})
        for name in {*limits, *requests} - {"cpu", "memory"}:
            raise Unknown(f"{fields.path}.resources: {name}; expected cpu and memory")
        requests = limits | requests
        options = security_options(fields.fields("securityContext"), pod_security)
        if "memory" in limits:
            most = int(quantity(limits["memory"]))
            options += [f"--memory={most}b", f"--memory-swap={most}b"]
        if "cpu" in limits:
            options.append(f"--cpus={quantity(limits['cpu'])}")
        if "cpu" in requests:
            options.append(f"--cpu-shares={max(2, int(1024 * quantity(requests['cpu'])))}")
        mounts = []
        for mount in fields.each("volumeMounts"):
            with mount:
                mounts.append(
                    (
                        mount.need("name"),
                        mount.need("mountPath"),
                        mount.get("readOnly", False),
                        mount.get("subPath", ""),
                    )
                )
        return ContainerSpec(
            name=fields.need("name"),
            image=fields.need("image"),
            command=fields.get("command", []),
            args=fields.get("args", []),
            environment=[
                read_variable(one, {"limits": limits, "requests": requests})
                for one in fields.each("env")
            ],
            ports=ports,
            probes=probes,
            limits=limits,
            requests=requests,
            options=options,
            mounts=mounts,
        )


def expand(text, variables):
    """$(NAME) in arguments; what is not known stays."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), text)
