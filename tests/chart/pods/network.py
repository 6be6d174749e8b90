"""The network of a node and its pods. A pod is a namespace with one interface, eth0, on the node's
bridge; the node is the namespace that this process is in, which must be one of its own.
"""

import itertools
import os
import subprocess
import sys
import time

NODE_ADDRESS = "10.90.0.1"
DNS_ADDRESS = "10.90.0.2"  # what answers names, on the node but with an address of its own
BRIDGE = "pods"
STARTED_S_MAX = 10

# Connects to the ports of an address, all at once, and prints those that answer.
CONNECT = """
import concurrent.futures, socket, sys
def reached(port):
    try:
        socket.create_connection((sys.argv[1], port), timeout=1).close()
        return [port]
    except OSError:
        return []
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(*sum(pool.map(reached, map(int, sys.argv[2:])), []))
"""


def ip(*words):
    subprocess.run(("ip", *words), check=True, capture_output=True, text=True)


def become_node():
    """Makes this namespace a node's."""
    ip("link", "set", "lo", "up")
    # An address of its own: it would otherwise take another one as pods come and go.
    ip("link", "add", BRIDGE, "address", "02:00:00:00:00:01", "type", "bridge")
    for address in (NODE_ADDRESS, DNS_ADDRESS):
        ip("address", "add", address + "/16", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")


def leave_node():
    ip("link", "delete", BRIDGE)


class PodNetwork:
    """A pod's namespace, which lives until it is closed. No two pods ever have the same address, so
    that nobody reaches a pod by what it once knew of another.
    """

    numbers = itertools.count(256)

    def __init__(self):
        number = next(self.numbers)
        self.address = f"10.90.{number // 256}.{number % 256}"
        self.rules = None
        # Holds the namespace while containers come and go.
        self.holder = subprocess.Popen(("unshare", "--net", "sleep", "infinity"))
        self.path = f"/proc/{self.holder.pid}/ns/net"
        self.await_namespace()
        device = f"pod{number}"
        ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns",
           str(self.holder.pid))  # fmt: skip
        ip("link", "set", device, "master", BRIDGE, "up")
        self.inside("ip", "address", "add", self.address + "/16", "dev", "eth0")
        self.inside("ip", "link", "set", "lo", "up")
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "route", "add", "default", "via", NODE_ADDRESS)

    def await_namespace(self):
        end = time.monotonic() + STARTED_S_MAX
        while os.readlink(self.path) == os.readlink("/proc/self/ns/net"):
            if time.monotonic() > end:
                raise TimeoutError(f"no namespace after {STARTED_S_MAX} s")
            time.sleep(0.01)

    def command(self, *words):
        return ("nsenter", f"--net={self.path}", *words)

    def inside(self, *words, text=None):
        """What a command run in the pod's network prints."""
        done = subprocess.run(self.command(*words), input=text, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def set_rules(self, rules):
        """Replaces the chains that the rules name; `rules` as iptables-restore reads them."""
        if rules != self.rules:
            self.inside("iptables-restore", "--noflush", text=rules)
            self.rules = rules

    def listening(self):
        """The TCP ports that something in the pod listens at, beyond loopback."""
        lines = self.inside("ss", "--listening", "--tcp", "--numeric", "--no-header").splitlines()
        places = [line.split()[3].rpartition(":") for line in lines]
        return sorted({int(port) for host, _, port in places if not host.startswith("127.")})

    def reached(self, address, ports):
        """Those of the ports at this address that a connection from the pod is made to."""
        words = (sys.executable, "-c", CONNECT, address, *map(str, ports))
        return [int(port) for port in self.inside(*words).split()]

    def close(self):
        self.holder.kill()
        self.holder.wait()
