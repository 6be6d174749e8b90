"""NetworkPolicies and Services as rules for a pod's packets, as iptables-restore reads them."""

import dataclasses

from fields import Unknown, labels_of, matches
from network import NODE_ADDRESS


@dataclasses.dataclass
class Place:
    """What rules need to know of a pod."""

    namespace: str
    labels: dict
    address: str
    ports: dict  # by name


@dataclasses.dataclass
class Peer:
    """Some pods: those with these labels in the namespaces with those, or in the policy's own."""

    pods: dict
    namespaces: dict | None


@dataclasses.dataclass
class Rule:
    peers: list | None  # None: everybody
    ports: list | None  # (protocol, port, last port); None: all


class Policy:
    """A NetworkPolicy."""

    def __init__(self, namespace, spec):
        self.namespace = namespace
        with spec:
            self.pods = labels_of(spec.fields("podSelector"))
            self.types = spec.need("policyTypes")
            if not set(self.types) <= {"Ingress", "Egress"}:
                raise Unknown(f"{spec.path}.policyTypes: {self.types}; expected Ingress, Egress")
            self.rules = {
                "Ingress": [self.rule(one, "from") for one in spec.each("ingress")],
                "Egress": [self.rule(one, "to") for one in spec.each("egress")],
            }

    def rule(self, fields, side):
        with fields:
            peers = [self.peer(one) for one in fields.each(side)] or None
            ports = [self.port(one) for one in fields.each("ports")] or None
            return Rule(peers, ports)

    @staticmethod
    def peer(fields):
        with fields:
            namespaces = fields.get("namespaceSelector")
            if namespaces is not None:
                namespaces = labels_of(fields.fields("namespaceSelector"))
            return Peer(labels_of(fields.fields("podSelector")), namespaces)

    @staticmethod
    def port(fields):
        with fields:
            protocol = fields.only("protocol", "TCP", "UDP")
            port = fields.need("port")
            return protocol.lower(), port, fields.get("endPort", port)

    def selects(self, place):
        return place.namespace == self.namespace and matches(self.pods, place.labels)

    def others(self, rule, places, namespaces):
        """Whom a rule is about; None stands for everybody."""
        if rule.peers is None:
            return [None]
        return [
            place
            for place in places
            if any(self.is_peer(peer, place, namespaces) for peer in rule.peers)
        ]

    def is_peer(self, peer, place, namespaces):
        if peer.namespaces is None:
            within = place.namespace == self.namespace
        else:
            within = matches(peer.namespaces, namespaces[place.namespace])
        return within and matches(peer.pods, place.labels)


# Set once in every pod, and kept: without a rule that asks for it the kernel forgets which
# connections there are.
BASE = f"""*nat
:SERVICES -
-A OUTPUT -j SERVICES
COMMIT
*filter
:UNSERVED -
:INGRESS -
:EGRESS -
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -s {NODE_ADDRESS} -j ACCEPT
-A INPUT -j INGRESS
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -j UNSERVED
-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -j EGRESS
COMMIT
"""


def chain(place, direction, policies, places, namespaces):
    """What a pod lets in or out beside its connections that are there; [] if no policy of this
    direction selects it.
    """
    name, flag = ("INGRESS", "-s") if direction == "Ingress" else ("EGRESS", "-d")
    own = [one for one in policies if direction in one.types and one.selects(place)]
    if not own:
        return []
    lines = []
    for policy in own:
        for rule in policy.rules[direction]:
            for other in policy.others(rule, places, namespaces):
                # A port's name is looked up where packets go to.
                named = place.ports if direction == "Ingress" else other and other.ports
                whom = f" {flag} {other.address}" if other else ""
                for match in port_matches(rule.ports, named):
                    lines.append(f"-A {name}{whom}{match} -j ACCEPT")
    return [*lines, f"-A {name} -j DROP"]


def port_matches(ports, named):
    if ports is None:
        return [""]
    found = []
    for protocol, first, last in ports:
        if isinstance(first, str):
            if first not in (named or {}):
                continue
            first = last = named[first]
        found.append(f" -p {protocol} --dport {first}:{last}")
    return found


def rules(place, policies, places, namespaces, services):
    """The rules of a pod over BASE. `services` are (address, port, endpoint's address and port, or
    None where no pod serves).
    """
    lines = ["*nat", ":SERVICES -"]
    for address, port, endpoint in services:
        if endpoint is not None:
            what = f"-d {address} -p tcp --dport {port}"
            lines.append(f"-A SERVICES {what} -j DNAT --to-destination {endpoint}")
    lines += ["COMMIT", "*filter", ":UNSERVED -", ":INGRESS -", ":EGRESS -"]
    for address, port, endpoint in services:
        if endpoint is None:
            lines.append(f"-A UNSERVED -d {address} -p tcp --dport {port} -j REJECT")
    for direction in ("Ingress", "Egress"):
        lines += chain(place, direction, policies, places, namespaces)
    return "\n".join([*lines, "COMMIT", ""])
