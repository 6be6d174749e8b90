"""A service as its processes, and clients that check its answers: for scripts that do something to it.

A network tells where hosts are and how to run a program on one: `address[host]`, `command(host, *args)`
and `inside(host, *args)`, which returns what the program printed.
"""

import datetime
import json
import os
import random
import re
import struct
import subprocess
import tempfile
import threading
import time


class Loopback:
    """All hosts are this one."""

    def __init__(self, hosts):
        self.address = dict.fromkeys(hosts, "127.0.0.1")
        self.device = "lo"

    def command(self, host, *args):
        return args

    def inside(self, host, *args):
        return subprocess.run(args, check=True, capture_output=True, text=True).stdout


def write_npy(path, shape, rng):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    count = shape[0] * shape[1] * shape[2]
    values = struct.pack(f"<{count}f", *(rng.gauss(0, 1) for _ in range(count)))
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values)


def read_npy(path):
    with open(path, "rb") as file:
        data = file.read()
    begin = 10 + struct.unpack_from("<H", data, 8)[0]
    return struct.unpack_from(f"<{(len(data) - begin) // 4}f", data, begin)


class Question:
    """Tensors in files, and the answer that one process alone gives."""

    def __init__(self, program, folder, name, q_tokens, kv_tokens):
        rng = random.Random(name)
        self.folder, self.name = folder, name
        for part, shape in (("q", (q_tokens, 4, 32)), ("k", (kv_tokens, 2, 32)),
                            ("v", (kv_tokens, 2, 32))):
            write_npy(self.path(part), shape, rng)
        # A file for --cluster that says nothing: the machine need not be measured for this.
        with tempfile.NamedTemporaryFile("w", suffix=".json") as cluster:
            cluster.write("{}")
            cluster.flush()
            subprocess.run((program, *self.arguments("expected")), check=True, capture_output=True,
                           env=dict(os.environ, ANNULUS_CLUSTER=cluster.name))
        self.expected = read_npy(self.path("expected"))

    def path(self, part):
        return os.path.join(self.folder, f"{self.name}-{part}.npy")

    def arguments(self, out, *more):
        return ("attend", "--json", "--pattern", "causal", "--q", self.path("q"), "--k",
                self.path("k"), "--v", self.path("v"), "--out", self.path(out), *more)

    def is_right(self, out):
        answer = read_npy(self.path(out))
        return len(answer) == len(self.expected) and all(
            abs(a - b) < 1e-4 for a, b in zip(answer, self.expected))


class Service:
    """A coordinator and workers, each on a host of its name."""

    def __init__(self, program, network, folder, workers, *coordinator_options):
        self.program, self.network, self.folder, self.processes = program, network, folder, {}
        self.start("coordinator", "coordinator", "--listen",
                   network.address["coordinator"] + ":0", "--insecure", *coordinator_options)
        # "ready HOST:PORT"
        self.endpoint = self.processes["coordinator"].stdout.readline().decode().split()[1]
        for worker in workers:
            self.start_worker(worker)
        self.await_ready(len(workers))

    def start_worker(self, name):
        self.start(name, "worker", "--coordinator", self.endpoint, "--name", name, "--threads", "1",
                   "--insecure")

    def start(self, host, command, *options):
        with open(os.path.join(self.folder, host + ".log"), "ab") as log:
            self.processes[host] = subprocess.Popen(
                self.network.command(host, self.program, command, "--net-devices",
                                     self.network.device, *options),
                stdout=subprocess.PIPE, stderr=log)

    def await_ready(self, workers):
        end = time.monotonic() + 20
        while self.states().count("ready") < workers:
            if time.monotonic() > end:
                raise TimeoutError(self.log("coordinator"))
            time.sleep(0.1)

    def log(self, host):
        with open(os.path.join(self.folder, host + ".log"), encoding="utf-8") as log:
            return log.read()

    def logged(self, host, event):
        """When the host first logged the event, as the time of day; None if it has not."""
        found = re.search(rf'^time=(\S+)Z level=\w+ event="{event}"', self.log(host), re.M)
        return found and datetime.datetime.fromisoformat(found.group(1)).replace(
            tzinfo=datetime.timezone.utc).timestamp()

    def status(self):
        return json.loads(self.network.inside("client", self.program, "status", "--json", "--endpoint",
                                              self.endpoint))

    def states(self):
        return [worker["state"] for worker in self.status()["workers"]]

    def asking(self, question, out, *more):
        """A client under way."""
        return subprocess.Popen(
            self.network.command("client", self.program,
                                 *question.arguments(out, "--endpoint", self.endpoint, *more)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ask(self, question, out, *more):
        with self.asking(question, out, *more) as client:
            stdout, stderr = client.communicate()
        return subprocess.CompletedProcess(client.args, client.returncode, stdout, stderr)

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
            process.stdout.close()


class Load(threading.Thread):
    """Asks again and again, each time of a context of its own, until told to stop."""

    REPEAT = 100  # answers of one context

    def __init__(self, service, question, number):
        super().__init__()
        self.service, self.question, self.out = service, question, f"load{number}"
        self.right = self.wrong = self.errors = 0
        self.client = None
        self.stopped = False
        self.start()

    def run(self):
        while not self.stopped:
            with self.service.asking(self.question, self.out, "--repeat",
                                     str(self.REPEAT)) as self.client:
                self.client.communicate()
            if self.client.returncode != 0:
                self.errors += 1
            elif self.question.is_right(self.out):
                self.right += self.REPEAT
            else:
                self.wrong += 1

    def vanish(self):
        """The client is killed; the next one goes on."""
        if self.client is not None:
            self.client.kill()

    def stop(self):
        self.stopped = True
        self.join()
