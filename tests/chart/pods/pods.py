"""Pods: what the kubelet of a node does."""

import os
import ssl
import threading
import time
import urllib.request

from fields import Unknown
from network import DNS_ADDRESS, PodNetwork
from policies import BASE, Place
from specs import expand, read_container
from volumes import Volume

CHECK_S = 0.1
BACKOFF_S = 10  # of the second restart; the first is at once
# Kubernetes does not ask whether a probed certificate is valid.
UNCHECKED = ssl._create_unverified_context()


class Pod:
    """A pod that runs, from its template. `changed` is called when its readiness changes."""

    def __init__(self, cluster, name, namespace, labels, spec):
        self.cluster, self.name, self.namespace, self.labels = cluster, name, namespace, labels
        self.folder = os.path.join(cluster.folder, "pods", name + f"-{time.monotonic_ns()}")
        self.ready = self.ending = self.gone = False
        self.restarts, self.exit_code = 0, None
        self.past = []  # what containers that have ended had printed
        self.lock = threading.Lock()  # guards the containers' starts and ends
        self.read(spec)
        self.network = PodNetwork()
        self.network.set_rules(BASE)
        self.address = self.network.address
        self.containers = {}

    def read(self, spec):
        with spec:
            self.restart = spec.only("restartPolicy", "Always", "Never")
            spec.only("dnsPolicy", "ClusterFirst")
            spec.only("enableServiceLinks", False)
            spec.only("automountServiceAccountToken", False)
            spec.no_effect("serviceAccountName", "topologySpreadConstraints", "tolerations")
            self.grace_s = spec.get("terminationGracePeriodSeconds", 30)
            with spec.fields("securityContext") as security:
                security.get("fsGroup"), security.get("runAsUser"), security.get("runAsGroup")
                security.get("runAsNonRoot"), security.get("seccompProfile")
                fs_group = security.get("fsGroup", 0)
                self.volumes = {}
                for one in spec.each("volumes"):
                    folder = os.path.join(self.folder, "volumes")
                    volume = Volume(one, folder, self.namespace, fs_group)
                    self.volumes[volume.name] = volume
                self.specs = [read_container(one, security) for one in spec.each("containers")]
        if len(self.specs) != 1:
            raise Unknown(f"{spec.path}.containers: {len(self.specs)}; expected one")

    def fields(self):
        return {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "status.podIP": self.address,
        }

    def place(self):
        ports = {name: port for spec in self.specs for name, port in spec.ports.items()}
        return Place(self.namespace, self.labels, self.address, ports)

    def update_volumes(self):
        for volume in self.volumes.values():
            volume.update(self.cluster.objects)

    def start(self):
        self.update_volumes()
        for spec in self.specs:
            self.start_container(spec)
            threading.Thread(target=self.keep, args=(spec,), daemon=True).start()

    def start_container(self, spec):
        variables = dict(variable(self) for variable in spec.environment)
        domain = f"{self.namespace}.svc.cluster.local"
        options = [
            *spec.options, f"--network=ns:{self.network.path}", f"--hostname={self.name}",
            f"--dns={DNS_ADDRESS}", "--dns-opt=ndots:5",
            *(f"--dns-search={one}" for one in (domain, domain[domain.index(".") + 1 :],
                                                "cluster.local")),
            *(f"--env={name}={value}" for name, value in variables.items()),
        ]  # fmt: skip
        for name, path, read_only, inner in spec.mounts:
            source = os.path.join(self.volumes[name].path, inner)
            options.append(f"--volume={source}:{path}:{'ro' if read_only else 'rw'}")
        args = [expand(one, variables) for one in (*spec.command, *spec.args)]
        if spec.command:
            options.append("--entrypoint=" + args.pop(0))
        name = f"{self.name}-{spec.name}-{time.monotonic_ns()}"
        self.containers[spec.name] = self.cluster.podman.start(name, options, spec.image, args)

    def container(self):
        """The one container of the pod."""
        (found,) = self.containers.values()
        return found

    def logs(self):
        """What its containers have printed, those that ended too."""
        with self.lock:
            now = [] if self.gone else [one.logs() for one in self.containers.values()]
            return "\n--- then\n".join([*self.past, *now])

    def keep(self, spec):
        """Restarts the container when it ends and probes it, until the pod is gone."""
        try:
            while not self.ending:
                self.watch(spec, self.containers[spec.name])
                with self.lock:
                    if self.ending:
                        return
                    before = self.containers[spec.name]
                    if self.restart == "Never":
                        self.exit_code = before.exit_code()
                        return
                    self.set_ready(False)
                    self.past.append(before.logs())
                    before.remove()
                    self.restarts += 1
                if self.restarts > 1:
                    time.sleep(BACKOFF_S)
                with self.lock:
                    if not self.ending:
                        self.start_container(spec)
        except Exception as error:
            if not self.ending:
                self.cluster.failed(error)

    def watch(self, spec, container):
        """Returns when the container has ended."""
        due = {name: 0.0 for name in spec.probes}
        failures = dict.fromkeys(spec.probes, 0)
        started = "startup" not in spec.probes
        if not spec.probes.get("readiness"):
            self.set_ready(True)
        while container.is_running() and not self.ending:
            for name, probe in spec.probes.items():
                if (name == "startup") == started or time.monotonic() < due[name]:
                    continue
                due[name] = time.monotonic() + probe.period_s
                well = self.probe(probe)
                failures[name] = 0 if well else failures[name] + 1
                if name == "startup":
                    started = well
                if name == "readiness" and (well or failures[name] >= probe.failures_max):
                    self.set_ready(well and container.is_running())
                elif failures[name] >= probe.failures_max:
                    container.stop(self.grace_s)
            time.sleep(CHECK_S)

    def probe(self, probe):
        url = f"{probe.scheme}://{self.address}:{probe.port}{probe.path}"
        try:
            with urllib.request.urlopen(url, timeout=probe.timeout_s, context=UNCHECKED):
                return True
        except OSError:
            return False

    def set_ready(self, ready):
        if ready != self.ready and not (ready and self.ending):
            self.ready = ready
            self.cluster.changed()

    def end(self, grace_s=None):
        """Ends it as `kubectl delete pod` does; 0: as --force. At once it is in no Service."""
        self.ending = True
        self.set_ready(False)
        for container in self.containers.values():
            container.stop(self.grace_s if grace_s is None else grace_s)
        with self.lock:
            self.gone = True
            for container in self.containers.values():
                self.past.append(container.logs())
                container.remove()
            self.network.close()
