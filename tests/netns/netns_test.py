"""A service whose client, coordinator and workers have a network namespace each: they meet only over
Ethernet, by advertised addresses. Exits 77 (skipped) where there is no right to make namespaces.

    netns_test.py ANNULUS        the program
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

from service import Load, Question, Service

PROGRAM = sys.argv.pop() if len(sys.argv) > 1 else None
FENCED_S_MAX = 1.5
CALLS_BEFORE = 200  # the load before a fault
SLOW_MBIT = 10
NAMESPACES = "/run/netns"  # where `ip netns` keeps them


def ip(*args):
    subprocess.run(("ip", *args), check=True, capture_output=True, text=True)


class Network:
    """Hosts on one bridge. A host is a namespace with one interface, eth0."""

    def __init__(self, hosts):
        self.prefix = f"annulus-{os.getpid()}-"
        self.device = "eth0"
        self.address = {host: f"10.77.0.{i + 1}" for i, host in enumerate(hosts)}
        try:
            self.connect()
        except (OSError, subprocess.CalledProcessError):
            self.close()
            raise

    def connect(self):
        ip("netns", "add", self.prefix + "bridge")
        self.inside("bridge", "ip", "link", "add", "br0", "type", "bridge")
        self.inside("bridge", "ip", "link", "set", "br0", "up")
        for host, address in self.address.items():
            ip("netns", "add", self.prefix + host)
            self.inside("bridge", "ip", "link", "add", host, "type", "veth", "peer", "name", "eth0",
                        "netns", self.prefix + host)
            self.inside("bridge", "ip", "link", "set", host, "master", "br0", "up")
            self.inside(host, "ip", "address", "add", address + "/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self.inside(host, "ip", "link", "set", device, "up")

    def command(self, host, *args):
        return ("ip", "netns", "exec", self.prefix + host, *args)

    def inside(self, host, *args):
        return subprocess.run(self.command(host, *args), check=True, capture_output=True,
                              text=True).stdout

    def limit(self, host, mbit):
        """What the host sends and receives, from now on."""
        rate = ("tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms")
        self.inside(host, "tc", "qdisc", "add", "dev", "eth0", "root", *rate)
        self.inside("bridge", "tc", "qdisc", "add", "dev", host, "root", *rate)

    def close(self):
        for host in ("bridge", *self.address):
            subprocess.run(("ip", "netns", "delete", self.prefix + host), capture_output=True)


def is_mounted(folder):
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1] == folder for line in mounts)


def unmount_namespaces():
    """`ip netns` mounts its folder onto itself at its first use, and leaves it so."""
    if is_mounted(NAMESPACES):
        subprocess.run(("umount", NAMESPACES), capture_output=True)


def why_not():
    """Why no such network can be made here; None if it can."""
    try:
        Network(["try"]).close()
    except OSError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        return error.stderr
    return None


def measured_gb_per_s(network, sender, receiver):
    """What one TCP connection between two hosts carries: 10^9 bytes a second over half a second."""
    receive = ("import socket,sys,time\n"
               "s=socket.create_server(('',9999)); print('up',flush=True); c,_=s.accept()\n"
               "n=0; begin=None\n"
               "while d:=c.recv(1<<20): begin=begin or time.monotonic(); n+=len(d)\n"
               "print(n/(time.monotonic()-begin)/1e9)")
    send = ("import socket,sys,time\n"
            f"c=socket.create_connection(('{network.address[receiver]}',9999))\n"
            "end=time.monotonic()+0.5; b=bytes(1<<16)\n"
            "while time.monotonic()<end: c.sendall(b)")
    with subprocess.Popen(network.command(receiver, sys.executable, "-c", receive), text=True,
                          stdout=subprocess.PIPE) as listener:
        listener.stdout.readline()
        network.inside(sender, sys.executable, "-c", send)
        return float(listener.stdout.read())


class NetworkTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="annulus-netns-")
        self.addCleanup(self.folder.cleanup)
        self.workers = ["w1", "w2", "w3"]
        self.network = Network(["coordinator", *self.workers, "client"])
        self.addCleanup(self.network.close)

    def serve(self, *coordinator_options):
        service = Service(PROGRAM, self.network, self.folder.name, self.workers, *coordinator_options)
        self.addCleanup(service.close)
        return service

    def cluster_file(self, gb_per_s):
        path = os.path.join(self.folder.name, f"cluster-{gb_per_s}.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"nodes": 3, "workers_per_node": 1, "between_gb_per_s": gb_per_s,
                       "between_us": 100, "flops": 2e10, "flops_f32": 2e10}, file)
        return path

    def test_processes_meet_by_advertised_addresses(self):
        service = self.serve()
        question = Question(PROGRAM, self.folder.name, "question", 90, 1000)
        for plan in ("pass-q", "ring", "group-cast"):
            outcome = service.ask(question, plan, "--plan", plan)
            self.assertEqual(outcome.returncode, 0, outcome.stderr)
            self.assertTrue(question.is_right(plan), plan)
        hosts = {worker["data_address"].rpartition(":")[0] for worker in service.status()["workers"]}
        self.assertEqual(hosts, {self.network.address[worker] for worker in self.workers})

    def test_auto_goes_by_the_measured_link(self):
        """The slowest link, as measured, goes into --cluster: auto plans otherwise."""
        question = Question(PROGRAM, self.folder.name, "long", 1024, 4096)
        fast = measured_gb_per_s(self.network, "w1", "w2")
        service = self.serve("--cluster", self.cluster_file(fast))
        before = service.ask(question, "before")
        self.assertEqual(before.returncode, 0, before.stderr)
        service.close()
        self.network.limit("w2", SLOW_MBIT)
        slow = min(measured_gb_per_s(self.network, *pair) for pair in (("w1", "w2"), ("w2", "w3")))
        self.assertLess(slow, SLOW_MBIT / 8e3 * 1.5)
        self.assertLess(10 * slow, fast)
        service = self.serve("--cluster", self.cluster_file(slow))
        after = service.ask(question, "after")
        self.assertEqual(after.returncode, 0, after.stderr)
        old, new = json.loads(before.stdout), json.loads(after.stdout)
        kept = service.ask(question, "kept", "--plan", old["plan"])
        self.assertEqual(kept.returncode, 0, kept.stderr)
        for out in ("before", "after", "kept"):
            self.assertTrue(question.is_right(out), out)
        print(f"link {fast:.2f} GB/s: auto takes {old['plan']}; {slow:.4f} GB/s: {new['plan']}, "
              f"{new['elapsed_s']:.2f} s instead of {json.loads(kept.stdout)['elapsed_s']:.2f} s")
        self.assertNotEqual(old["plan"], new["plan"])

    def fault(self, name, cut, mend):
        """Cuts worker w2 off under load: it is fenced soon, nobody gets a wrong answer, and once the
        cut is mended it joins again, as one worker."""
        service = self.serve()
        question = Question(PROGRAM, self.folder.name, "small", 1, 1000)
        loads = [Load(service, question, i) for i in range(2)]
        end = time.monotonic() + 40
        while sum(load.right for load in loads) < CALLS_BEFORE and time.monotonic() < end:
            time.sleep(0.05)
        before = sum(load.right for load in loads)
        begin = time.time()
        cut()
        while service.logged("coordinator", "worker lost") is None and time.time() < begin + 10:
            time.sleep(0.05)
        fenced_s = (service.logged("coordinator", "worker lost") or begin + 10) - begin
        time.sleep(1)
        owners = [sum(1 for state in service.states() if state != "lost")]
        mend()
        end = time.monotonic() + 20
        while service.states().count("ready") < 3 and time.monotonic() < end:
            time.sleep(0.05)
        owners.append(sum(1 for state in service.states() if state != "lost"))
        for load in loads:
            load.stop()
        wrong, errors = (sum(getattr(load, key) for load in loads) for key in ("wrong", "errors"))
        double = max(0, owners[0] - 2) + max(0, owners[1] - 3)
        met = fenced_s <= FENCED_S_MAX and wrong == 0 and owners == [2, 3]
        figure = f"fenced after {fenced_s:.2f} s, {wrong} wrong, {double} double owners"
        print(f"\nreliability\t3\t{name}\t{before} calls, 2 at once\t<= 1.5 s, 0 double owners\t{figure}"
              f"\t{'yes' if met else 'no'}")
        self.assertGreaterEqual(before, CALLS_BEFORE)
        self.assertLess(fenced_s, FENCED_S_MAX)
        self.assertEqual((wrong, owners), (0, [2, 3]), (errors, service.log("w2")))
        after = service.ask(question, "after")
        self.assertEqual(after.returncode, 0, after.stderr)
        self.assertTrue(question.is_right("after"))

    def test_black_hole(self):
        def link(state):
            self.network.inside("bridge", "ip", "link", "set", "w2", state)
        self.fault("black hole", lambda: link("down"), lambda: link("up"))

    def one_way(self, name, sender, receiver):
        """The sender's packets to the receiver vanish, the others arrive."""
        def route(change):
            self.network.inside(sender, "ip", "route", change, "blackhole",
                                self.network.address[receiver])
        self.fault(name, lambda: route("add"), lambda: route("del"))

    def test_partition_from_worker_to_coordinator(self):
        self.one_way("one-way partition, worker to coordinator", "w2", "coordinator")

    def test_partition_from_coordinator_to_worker(self):
        self.one_way("one-way partition, coordinator to worker", "coordinator", "w2")


if __name__ == "__main__":
    if not is_mounted(NAMESPACES):
        atexit.register(unmount_namespaces)
    if (why := why_not()) is not None:
        print(f"skipped: network namespaces cannot be made here: {why.strip()}")
        sys.exit(77)
    unittest.main()
