"""deploy/annulus.kube.yaml as `podman play kube` runs it. Exits 77 (skipped) where it cannot.

laptop_test.py ANNULUS IMAGE        the program, and the archive that ./dev image has left
"""

import os
import time
import unittest

import chart
import clients
import world
from network import ip

FILE = os.path.join(chart.ROOT, "deploy", "annulus.kube.yaml")
READY_S_MAX = 30


class LaptopTest(unittest.TestCase):
    def test_a_cluster_serves(self):
        ip("link", "set", "lo", "up")
        self.addCleanup(world.podman, "play", "kube", "--down", FILE)
        world.podman("play", "kube", FILE)
        end = time.monotonic() + READY_S_MAX
        while (now := clients.status("127.0.0.1")) is None or len(now["workers"]) < 2:
            self.assertLess(time.monotonic(), end, now)
            time.sleep(0.1)
        folder = os.path.join(world.podman.folder, "data")
        os.mkdir(folder)
        question = clients.Question(folder, "small", 16, 4096)
        expected = question.expect(world.PROGRAM, "causal")
        words = question.words(folder, "causal", "out", "--endpoint=127.0.0.1:7070")
        clients.run(world.PROGRAM, words)
        self.assertTrue(question.is_right("out", expected))


if __name__ == "__main__":
    world.main()
