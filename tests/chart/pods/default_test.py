"""The chart's default values as real pods: they get ready, serve clients, and bear what clusters do
to pods. Exits 77 (skipped) where containers cannot run.

    default_test.py ANNULUS IMAGE        the program, and the archive that ./dev image has left
"""

import time
import unittest

import clients
import world
from clients import Question, client_pod

TOKENS = 128 << 10
S2 = "s2(64,16,4)"
GONE_S_MAX = 30
GRPC_PORT, HTTP_PORT, DATA_PORT = 7070, 7071, 7072
UCX_PORTS = range(7100, 7164)


class DefaultPodsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster, cls.objects = world.install(cls)
        cls.cluster.await_ready()
        cls.ready_s = time.monotonic() - cls.cluster.applied
        cls.folder = cls.cluster.folder_for("data")
        cls.question = Question(cls.folder, "question", 16, TOKENS)
        cls.expected = {
            pattern: cls.question.expect(world.PROGRAM, pattern) for pattern in (S2, "causal")
        }

    def setUp(self):
        self.cluster.await_ready()

    def coordinator(self):
        (pod,) = [pod for pod in self.cluster.named("coordinator") if not pod.ending]
        return pod

    def workers(self):
        return self.cluster.named("-cpu-")

    def client(self, name, pattern, *more):
        endpoint = f"--endpoint=r-annulus.{world.NAMESPACE}.svc.cluster.local:7070"
        words = self.question.words(clients.INSIDE, pattern, name, endpoint, *more)
        return client_pod(f"client-{name}", world.NAMESPACE, world.IMAGE, self.folder, words)

    def status(self):
        return clients.status(self.coordinator().address)

    def await_status(self, what, timeout_s=GONE_S_MAX):
        """The service's status once `what` holds of it."""
        end = time.monotonic() + timeout_s
        while True:
            self.cluster.check()
            now = self.status()
            if now is not None and what(now):
                return now
            if time.monotonic() > end:
                self.fail(f"{now}\n{self.cluster.logs()}")
            time.sleep(0.1)

    def test_pods_are_ready_soon(self):
        self.assertLess(self.ready_s, 30)
        print(f"\nall pods were ready after {self.ready_s:.1f} s")

    def test_helm_test(self):
        (hook,) = [one for one in self.objects if one["kind"] == "Pod"]
        code, log = self.cluster.run(hook)
        self.assertEqual(code, 0, log)
        self.assertEqual(log.count(" ready "), len(self.workers()), log)

    @staticmethod
    def contexts(now):
        """The contexts that are whole, by what is true of them wherever they lie."""
        return {(one["id"], one["state"]) for one in now["context_list"] if one["tokens"] == TOKENS}

    def attending(self, name, *more):
        """A client's pod that attends to a context of its own, and the contexts that there are."""
        before = self.contexts(self.status())
        client = self.cluster.create(self.client(name, S2, *more))
        now = self.await_status(lambda now: len(self.contexts(now) - before) == 1)
        return client, self.contexts(now)

    def coordinator_comes_back(self, name, hurt):
        """No context is lost with the coordinator: not those of clients that have vanished, which
        stay for as long as their lease."""
        client, held = self.attending(name, "--repeat=1000000")
        self.cluster.remove(client, 0)
        begin = time.monotonic()
        hurt()
        # It answers at its own address before the Service knows that it is ready.
        now = self.await_status(lambda now: held <= self.contexts(now))
        self.cluster.await_ready()
        print(f"\nserves again with {len(held)} contexts after {time.monotonic() - begin:.1f} s")
        self.assertTrue(all(worker["state"] == "ready" for worker in now["workers"]))
        self.client_is_served(name)

    def client_is_served(self, name, *patterns):
        for pattern in patterns or (S2,):
            code, log = self.cluster.run(self.client(name, pattern))
            self.assertEqual(code, 0, log)
            self.assertTrue(self.question.is_right(name, self.expected[pattern]), pattern)

    def test_a_client_attends_to_128k_tokens(self):
        self.client_is_served("plain", S2, "causal")

    def test_a_coordinator_deleted_by_force_comes_back(self):
        self.coordinator_comes_back("deleted", lambda: self.cluster.delete(self.coordinator(), 0))

    def test_a_coordinator_killed_comes_back(self):
        self.coordinator_comes_back("killed", lambda: self.coordinator().container().kill())

    def test_a_worker_deleted_drains(self):
        """Its client notices nothing."""
        client, held = self.attending("drained", "--repeat=3000")
        self.cluster.delete(self.workers()[0])
        self.cluster.await_ready()
        self.await_status(lambda now: held <= self.contexts(now))
        self.assertIsNone(client.exit_code, "the client has ended before the worker had gone")
        code, log = self.cluster.wait(client, 120)
        self.assertEqual(code, 0, log)
        self.assertTrue(self.question.is_right("drained", self.expected[S2]))

    def test_containers_have_no_rights(self):
        for pod in [self.coordinator(), *self.workers()]:
            status, mounts = pod.container().status(), pod.container().mounts()
            for ids in ("Uid", "Gid"):
                self.assertEqual(set(status[ids].split()), {"65532"}, pod.name)
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                self.assertEqual(int(status[capabilities], 16), 0, (pod.name, capabilities))
            self.assertEqual(status["NoNewPrivs"], "1", pod.name)
            self.assertEqual(status["Seccomp"], "2", pod.name)  # a filter
            self.assertIn("ro", mounts["/"], pod.name)

    def test_strangers_reach_nothing_but_what_clients_need(self):
        coordinator, worker = self.coordinator(), self.workers()[0]
        listening = worker.network.listening()
        ucx = [port for port in listening if port in UCX_PORTS]
        self.assertTrue(ucx, listening)
        self.assertLessEqual({HTTP_PORT, DATA_PORT}, set(listening))

        def reached(pod, to, ports):
            return pod.network.reached(to.address, ports)

        # Members meet: what others are denied is there.
        self.assertEqual(reached(coordinator, worker, ucx), ucx)
        alone = ("coordinator", "--insecure", "--listen=0.0.0.0:7070")
        strangers = [
            self.cluster.create(client_pod("other", name, world.IMAGE, self.folder, alone))
            for name in (world.NAMESPACE, "elsewhere")
        ]
        neighbour, far = strangers
        try:
            deadline = time.monotonic() + GONE_S_MAX
            while not reached(far, neighbour, [GRPC_PORT]) and time.monotonic() < deadline:
                time.sleep(0.1)
            self.assertEqual(reached(far, neighbour, [GRPC_PORT]), [GRPC_PORT])
            self.assertEqual(reached(neighbour, worker, [*ucx, HTTP_PORT]), [])
            self.assertEqual(reached(neighbour, worker, [DATA_PORT]), [DATA_PORT])
            self.assertEqual(reached(neighbour, coordinator, [GRPC_PORT, HTTP_PORT]), [GRPC_PORT])
            self.assertEqual(reached(far, worker, listening), [])
            self.assertEqual(reached(far, coordinator, [GRPC_PORT, HTTP_PORT]), [])
            self.assertEqual(reached(worker, far, [GRPC_PORT]), [], "a worker goes out")
        finally:
            for pod in strangers:
                self.cluster.remove(pod, 0)


if __name__ == "__main__":
    world.main()
