"""What pods are made from is read whole: no field is passed over, and rules for packets
say what policies do.
"""

import copy
import sys
import tempfile
import unittest
from unittest import mock

import chart
import cluster as clusters
from fields import Fields, Unknown, quantity
from pods import Pod
from policies import Place, Policy, rules


def cluster():
    """One that has no network and starts no pods."""
    with (
        mock.patch.object(clusters, "become_node"),
        mock.patch.object(clusters, "NameServer"),
    ):
        made = clusters.Cluster(None, tempfile.gettempdir())
    made.add = lambda pod: None
    return made


def read(objects):
    with mock.patch.object(clusters.Controller, "start", read_pod):
        cluster().apply(objects)


def read_pod(controller, index):
    """Reads a template as far as it can be without making anything."""
    pod = Pod.__new__(Pod)
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.chown"):
        pod.namespace, pod.folder = controller.namespace, folder
        pod.read(Fields(controller.template, f"{controller.kind} {controller.name}"))


@unittest.skipIf(chart.helm() is None, "./dev chart --tools has not installed helm")
class ReadingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.objects = chart.render()

    def changed(self, kind, change):
        objects = copy.deepcopy(self.objects)
        change(next(one for one in objects if one["kind"] == kind))
        return objects

    def refused(self, word, kind, change):
        with self.assertRaisesRegex(Unknown, word):
            read(self.changed(kind, change))

    def test_the_chart_is_understood(self):
        read(self.objects)

    def test_what_is_not_understood_is_refused(self):
        def container(one):
            return one["spec"]["template"]["spec"]["containers"][0]

        self.refused("Ingress", "Service", lambda one: one.update(kind="Ingress"))
        self.refused(
            "sessionAffinity", "Service", lambda one: one["spec"].update(sessionAffinity=1)
        )
        self.refused("NodePort", "Service", lambda one: one["spec"].update(type="NodePort"))
        self.refused("paused", "Deployment", lambda one: one["spec"].update(paused=True))
        self.refused("lifecycle", "StatefulSet", lambda one: container(one).update(lifecycle={}))
        self.refused(
            "grpc", "Deployment", lambda one: container(one)["livenessProbe"].update(grpc={})
        )
        self.refused(
            "ipBlock",
            "NetworkPolicy",
            lambda one: one["spec"].update(ingress=[{"from": [{"ipBlock": {}}]}]),
        )


class RulesTest(unittest.TestCase):
    NAMESPACES = {"ns": {"name": "ns"}, "other": {"name": "other"}}  # noqa: RUF012

    def lines(self, spec, services=()):
        places = [
            Place("ns", {"app": "a"}, "10.0.0.1", {"http": 80}),
            Place("ns", {"app": "b"}, "10.0.0.2", {"http": 81}),
            Place("other", {"app": "b"}, "10.0.0.3", {}),
        ]
        policies = [Policy("ns", Fields(spec, "policy"))]
        return rules(places[0], policies, places, self.NAMESPACES, services).splitlines()

    def test_a_policy_denies_what_it_does_not_name(self):
        lines = self.lines({"podSelector": {}, "policyTypes": ["Ingress"]})
        self.assertIn("-A INGRESS -j DROP", lines)
        self.assertNotIn("-A EGRESS -j DROP", lines)
        other = {"podSelector": {"matchLabels": {"app": "c"}}, "policyTypes": ["Ingress"]}
        self.assertNotIn("-A INGRESS -j DROP", self.lines(other))

    def test_peers_are_of_the_policy_s_namespace_unless_it_says_so(self):
        peer = {"podSelector": {"matchLabels": {"app": "b"}}}
        rule = {"from": [peer], "ports": [{"port": "http"}]}
        spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]}
        accepted = [line for line in self.lines(spec) if line.endswith("ACCEPT")]
        self.assertEqual(accepted, ["-A INGRESS -s 10.0.0.2 -p tcp --dport 80:80 -j ACCEPT"])
        peer["namespaceSelector"] = {"matchLabels": {"name": "other"}}
        accepted = [line for line in self.lines(spec) if line.endswith("ACCEPT")]
        self.assertEqual(accepted, ["-A INGRESS -s 10.0.0.3 -p tcp --dport 80:80 -j ACCEPT"])

    def test_a_port_s_name_is_the_receiver_s(self):
        rule = {"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": "http"}]}
        spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}
        self.assertIn("-A EGRESS -d 10.0.0.2 -p tcp --dport 81:81 -j ACCEPT", self.lines(spec))

    def test_a_service_without_pods_refuses(self):
        spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
        served = self.lines(spec, [("10.1.0.1", 7070, "10.0.0.2:81")])
        self.assertIn(
            "-A SERVICES -d 10.1.0.1 -p tcp --dport 7070 -j DNAT --to-destination 10.0.0.2:81",
            served,
        )
        unserved = self.lines(spec, [("10.1.0.1", 7070, None)])
        self.assertIn("-A UNSERVED -d 10.1.0.1 -p tcp --dport 7070 -j REJECT", unserved)

    def test_quantities(self):
        self.assertEqual(quantity("500m"), 0.5)
        self.assertEqual(quantity("2Gi"), 2**31)
        self.assertRaises(Unknown, quantity, "2 GiB")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
