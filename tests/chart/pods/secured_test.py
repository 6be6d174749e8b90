"""The chart with TLS from a Secret, and with no more memory than it computes that workers need.
Exits 77 (skipped) where containers cannot run.

    secured_test.py ANNULUS IMAGE        the program, and the archive that ./dev image has left
"""

import base64
import socket
import ssl
import time
import unittest
from pathlib import Path

import clients
import processes
import world
from clients import Question, client_pod

TOKENS = 128 << 10
SECRET = "annulus-tls"
HOST = f"r-annulus.{world.NAMESPACE}.svc.cluster.local"
NAMES = ",".join(
    f"DNS:{name}.{world.NAMESPACE}.svc.cluster.local"
    for name in ("r-annulus", "r-annulus-internal", "*.r-annulus-workers")
)
# KV of 256Mi, its tables, memory that is kept, uploads and the program: the least that is allowed.
MEMORY = "736Mi"
VALUES = {
    "tls": {"mode": "secret", "coordinatorSecret": SECRET, "reloadSeconds": 1},
    "worker": {
        "kvBytes": "256Mi",
        "uploadBytes": "64Mi",
        "resources": {"requests": {"memory": MEMORY}, "limits": {"memory": MEMORY}},
    },
}
RELOADED_S_MAX = 30
UPLOADED_S_MAX = 60
TLS_VOLUME = {
    "name": "tls",
    "secret": {"secretName": SECRET, "items": [{"key": "ca.crt", "path": "ca.crt"}]},
}
TLS_MOUNT = {"name": "tls", "mountPath": "/tls", "readOnly": True}


def secret(folder):
    files = {
        name: base64.b64encode((folder / name).read_bytes()).decode()
        for name in ("tls.crt", "tls.key", "ca.crt")
    }
    metadata = {"name": SECRET, "namespace": world.NAMESPACE}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "kubernetes.io/tls",
        "data": files,
    }


class SecuredPodsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.certificates = Path(world.podman.folder) / "certificates"
        processes.make_certificates(cls.certificates, NAMES)
        cls.cluster, _ = world.install(cls, VALUES, before=[secret(cls.certificates)])
        cls.folder = cls.cluster.folder_for("data")

    def setUp(self):
        self.cluster.await_ready()

    def client(self, name, question, *more):
        words = question.words(clients.INSIDE, "causal", "out", f"--endpoint={HOST}:7070", *more)
        words.append("--tls-ca=/tls/ca.crt")
        return client_pod(
            name, world.NAMESPACE, world.IMAGE, self.folder, words,
            volumes=[TLS_VOLUME], mounts=[TLS_MOUNT],
        )  # fmt: skip

    def served(self, pod, port, name):
        """The certificate that a client of the pod sees, which its authority has signed."""
        context = ssl.create_default_context(cafile=self.certificates / "ca.crt")
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((pod.address, port), timeout=5) as plain:
            with context.wrap_socket(plain, server_hostname=name) as connection:
                return connection.getpeercert(binary_form=True)

    def test_a_renewed_secret_is_served_without_a_restart(self):
        (coordinator,) = self.cluster.named("coordinator")
        places = [(coordinator, 7070, HOST)]
        places += [
            (pod, 7072, f"{pod.name}.r-annulus-workers.{world.NAMESPACE}.svc.cluster.local")
            for pod in self.cluster.named("-cpu-")
        ]
        old = [self.served(*place) for place in places]
        self.assertEqual(len(set(old)), 1)
        processes.renew_certificate(self.certificates, NAMES)
        self.cluster.apply([secret(self.certificates)])
        text = (self.certificates / "tls.crt").read_text()
        new = ssl.PEM_cert_to_DER_cert(text)
        self.assertNotEqual(new, old[0])
        end = time.monotonic() + RELOADED_S_MAX
        while any(self.served(*place) != new for place in places):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.2)
        self.assertEqual([pod.restarts for pod, _, _ in places], [0] * len(places))
        question = Question(self.folder, "small", 16, 4096)
        code, log = self.cluster.run(self.client("after", question))
        self.assertEqual(code, 0, log)
        expected = question.expect(world.PROGRAM, "causal")
        self.assertTrue(question.is_right("out", expected))

    def whole_contexts(self):
        (coordinator,) = self.cluster.named("coordinator")
        now = clients.status(coordinator.address) or {"context_list": []}
        return sum(one["tokens"] == TOKENS for one in now["context_list"])

    def upload(self, question, count):
        """A client that holds the context that it has uploaded; or its exit status and words."""
        words = self.client(f"holder-{count}", question, "--repeat=1000000")
        pod = self.cluster.create(words)
        end = time.monotonic() + UPLOADED_S_MAX
        while pod.exit_code is None and self.whole_contexts() <= count:
            self.cluster.check()
            self.assertLess(time.monotonic(), end, self.cluster.logs())
            time.sleep(0.1)
        return pod if pod.exit_code is None else self.cluster.wait(pod, 1)

    def test_uploads_stay_within_the_memory(self):
        """Contexts of 256 MiB, half of each on a worker, until there is no room for another."""
        question = Question(self.folder, "large", 1, TOKENS, 4, 4, 64)
        holders = []
        while not isinstance(last := self.upload(question, len(holders)), tuple):
            holders.append(last)
        for pod in holders:
            self.cluster.remove(pod, 0)
        self.assertIn(len(holders), (1, 2))
        self.assertEqual(last[0], 1)
        self.assertIn("RESOURCE_EXHAUSTED", last[1])
        for pod in [*self.cluster.named("-cpu-"), *self.cluster.named("coordinator")]:
            most, limit, killed = pod.container().memory()
            print(f"\n{pod.name}: at most {most >> 20} MiB of {limit >> 20} MiB")
            self.assertLessEqual(most, limit)
            self.assertEqual((killed, pod.restarts), (0, 0), pod.name)


if __name__ == "__main__":
    world.main()
