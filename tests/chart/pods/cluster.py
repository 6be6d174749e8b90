"""A cluster of one node: it takes objects of Kubernetes and does what they ask for."""

import ipaddress
import os
import secrets
import sys
import threading
import time

from fields import Fields, Unknown, matches
from names import NameServer
from network import DNS_ADDRESS, become_node, leave_node
from pods import Pod
from policies import Place, Policy, rules

DOMAIN = "svc.cluster.local"
SERVICE_ADDRESSES = ipaddress.ip_network("10.91.0.0/16")
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
NODE_PLACE = Place("kube-system", {"k8s-app": "kube-dns"}, DNS_ADDRESS, {})
READY_S_MAX = 30


class Service:
    def __init__(self, namespace, name, address, spec):
        self.namespace, self.name = namespace, name
        with spec:
            spec.only("type", "ClusterIP")
            self.address = None if spec.get("clusterIP") == "None" else address
            self.not_ready_too = spec.get("publishNotReadyAddresses", False)
            self.selector = spec.need("selector")
            self.ports = []
            for port in spec.each("ports"):
                with port:
                    port.only("protocol", "TCP")
                    port.no_effect("name", "appProtocol")
                    self.ports.append((port.need("port"), port.get("targetPort")))

    def members(self, pods):
        return [
            pod
            for pod in pods
            if pod.namespace == self.namespace
            and matches(self.selector, pod.labels)
            and not pod.gone
            and (pod.ready or (self.not_ready_too and not pod.ending))
        ]

    def translations(self, pods):
        """(address, port, a member's address and port or None), for each port."""
        if self.address is None:
            return []
        members = self.members(pods)
        found = []
        for port, target in self.ports:
            endpoint = None
            if members:
                named = members[0].place().ports
                target = named[target] if isinstance(target, str) else target or port
                endpoint = f"{members[0].address}:{target}"
            found.append((self.address, port, endpoint))
        return found


class Controller:
    """A Deployment or StatefulSet: it keeps so many pods of one template."""

    def __init__(self, cluster, kind, namespace, name, spec):
        self.cluster, self.kind, self.namespace, self.name = cluster, kind, namespace, name
        self.started = False
        with spec:
            self.replicas = spec.get("replicas", 1)
            spec.no_effect("revisionHistoryLimit", "selector")
            if kind == "Deployment":
                with spec.fields("strategy") as strategy:
                    strategy.only("type", "Recreate")
            else:
                spec.only("podManagementPolicy", "Parallel")
                spec.no_effect("serviceName")
                with spec.fields("updateStrategy") as strategy:
                    strategy.only("type", "OnDelete")
            with spec.fields("template") as template:
                with template.fields("metadata") as metadata:
                    metadata.no_effect("annotations")
                    self.labels = metadata.get("labels", {})
                self.template = template.get("spec")

    def pod_name(self, index):
        if self.kind == "StatefulSet":
            return f"{self.name}-{index}"
        return f"{self.name}-{secrets.token_hex(4)}"

    def start(self, index):
        spec = Fields(self.template, f"{self.kind} {self.name}")
        pod = Pod(self.cluster, self.pod_name(index), self.namespace, self.labels, spec)
        pod.controller, pod.index = self, index
        return pod


class Cluster:
    def __init__(self, podman, folder):
        self.podman, self.folder = podman, folder
        self.objects = {}  # by kind, namespace and name
        self.pods, self.services, self.policies, self.controllers = [], {}, [], []
        self.namespaces = {}
        self.errors = []
        self.addresses = SERVICE_ADDRESSES.hosts()
        self.lock = threading.RLock()  # guards the lists above, and rules of pods
        become_node()
        self.names = NameServer(DNS_ADDRESS, self.lookup)

    # Objects

    def apply(self, objects):
        """Takes objects that are new, or ConfigMaps and Secrets that have changed. Hooks are left
        to `run`.
        """
        self.applied = time.monotonic()
        with self.lock:
            for one in objects:
                self.take(one)
        begun = [
            (one, i) for one in self.controllers if not one.started for i in range(one.replicas)
        ]
        for one in self.controllers:
            one.started = True
        for one, index in begun:
            self.add(one.start(index))
        with self.lock:
            for pod in self.pods:
                pod.update_volumes()

    def take(self, one):
        kind = one.get("kind")
        with Fields(one, f"{kind}") as fields:
            fields.no_effect("apiVersion", "kind")
            metadata = fields.fields("metadata")
            with metadata:
                name = metadata.need("name")
                namespace = metadata.get("namespace", "default")
                metadata.no_effect("labels", "annotations")
            fields.path = f"{kind} {name}"
            self.namespaces[namespace] = {NAMESPACE_LABEL: namespace}
            self.namespaces["kube-system"] = {NAMESPACE_LABEL: "kube-system"}
            if "helm.sh/hook" in metadata.value.get("annotations", {}):
                fields.no_effect("spec")
                return
            if kind in ("ConfigMap", "Secret"):
                fields.no_effect("data", "stringData", "type", "immutable")
            elif kind == "ServiceAccount":
                fields.only("automountServiceAccountToken", False)
            elif kind == "PodDisruptionBudget":
                fields.no_effect("spec")
            elif kind == "Service":
                spec = fields.fields("spec")
                address = str(next(self.addresses))
                self.services[namespace, name] = Service(namespace, name, address, spec)
            elif kind == "NetworkPolicy":
                self.policies.append(Policy(namespace, fields.fields("spec")))
            elif kind in ("Deployment", "StatefulSet"):
                spec = fields.fields("spec")
                self.controllers.append(Controller(self, kind, namespace, name, spec))
            else:
                raise Unknown(f"kind: {kind!r}; expected one that is known here")
            self.objects[kind, namespace, name] = one

    # Pods

    def add(self, pod):
        with self.lock:
            self.pods.append(pod)
        self.changed()
        pod.start()
        return pod

    def create(self, one):
        """A pod of its own that runs."""
        with Fields(one, "Pod") as fields:
            fields.no_effect("apiVersion")
            fields.only("kind", "Pod")
            with fields.fields("metadata") as metadata:
                metadata.no_effect("annotations")
                name, namespace = metadata.need("name"), metadata.get("namespace", "default")
                labels = metadata.get("labels", {})
            spec = fields.fields("spec")
            self.namespaces.setdefault(namespace, {NAMESPACE_LABEL: namespace})
            pod = Pod(self, name, namespace, labels, spec)
        pod.controller = None
        return self.add(pod)

    def wait(self, pod, timeout_s):
        """(exit status, what it printed) of a pod that ends by itself; then it is gone."""
        end = time.monotonic() + timeout_s
        while pod.exit_code is None and time.monotonic() < end:
            self.check()
            time.sleep(0.05)
        code = pod.exit_code
        self.remove(pod, 0)
        return code, pod.past[-1]

    def run(self, one, timeout_s=60):
        return self.wait(self.create(one), timeout_s)

    def remove(self, pod, grace_s=None):
        pod.end(grace_s)
        with self.lock:
            self.pods.remove(pod)
        self.changed()

    def delete(self, pod, grace_s=None):
        """As kubectl delete pod, 0 as --force; returns the pod in its place."""
        if pod.controller.kind == "Deployment":
            pod.ending = True
            pod.set_ready(False)
            new = self.add(pod.controller.start(pod.index))
            self.remove(pod, grace_s)
        else:
            self.remove(pod, grace_s)
            new = self.add(pod.controller.start(pod.index))
        return new

    def named(self, part):
        """Pods whose name has this in it."""
        with self.lock:
            return [pod for pod in self.pods if part in pod.name]

    def await_ready(self, timeout_s=READY_S_MAX):
        """Seconds until all pods of controllers were ready."""
        begin = time.monotonic()
        while True:
            self.check()
            with self.lock:
                waiting = [pod.name for pod in self.pods if pod.controller and not pod.ready]
            if not waiting:
                return time.monotonic() - begin
            if time.monotonic() - begin > timeout_s:
                raise TimeoutError(f"not ready after {timeout_s} s: {waiting}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self):
        with self.lock:
            pods = list(self.pods)
        return "\n".join(f"--- {pod.name}\n{pod.logs()}" for pod in pods)

    def failed(self, error):
        self.errors.append(error)

    def check(self):
        """Raises what went wrong in a thread of the cluster."""
        if self.errors:
            raise self.errors[0]

    # Network

    def changed(self):
        """Brings the rules of all pods up to date."""
        with self.lock:
            pods = [pod for pod in self.pods if not pod.gone]
            places = [NODE_PLACE, *(pod.place() for pod in pods)]
            services = [
                one for service in self.services.values() for one in service.translations(pods)
            ]
            for pod in pods:
                text = rules(pod.place(), self.policies, places, self.namespaces, services)
                pod.network.set_rules(text)

    def lookup(self, name):
        """The addresses of a name: a Service's, or a pod's of a headless one. None if there is no
        such name.
        """
        head = name.removesuffix("." + DOMAIN)
        if head == name or "." not in head:
            return None
        *host, service, namespace = head.split(".")
        with self.lock:
            service = self.services.get((namespace, service))
            if service is None or len(host) > 1:
                return None
            if service.address is not None:
                return None if host else [service.address]
            members = service.members(self.pods)
            if host:
                members = [pod for pod in members if pod.name == host[0]]
            return [pod.address for pod in members] or (None if host else [])

    def close(self):
        with self.lock:
            pods = list(self.pods)
        for pod in pods:
            try:
                pod.end(0)
            except (OSError, RuntimeError) as error:
                print(f"{pod.name}: {error}", file=sys.stderr)
        self.names.close()
        leave_node()

    def folder_for(self, name):
        """A folder that any user in a pod may write to."""
        path = os.path.join(self.folder, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o777)
        return path
