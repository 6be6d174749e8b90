"""A service of processes of this machine, which tests may kill and start again."""

import os
import re
import select
import signal
import subprocess
import sys
import time

import annulus


class Service:
    """A coordinator and workers, each a process; ends them all at the end of a ``with``."""

    def __init__(self, workers=2, *, coordinator_options=(), worker_options=()):
        self.coordinator_options = coordinator_options
        self.worker_options = ("--threads=1", "--backend=cpu", *worker_options)
        self.endpoint = "127.0.0.1:0"  # any port; then the one that it was given
        self.workers = []
        self.coordinator = None
        try:
            self.start_coordinator()
            for _ in range(workers):
                self.start_worker()
            self.wait_for_workers(workers)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def start_coordinator(self):
        """At the port of the one before, if there was one."""
        self.coordinator = _annulus(
            "coordinator", f"--listen={self.endpoint}", *self.coordinator_options
        )
        ready = re.match(r"ready (\S+:\d+)$", _line(self.coordinator))
        assert ready, "the coordinator did not say where it listens"
        self.endpoint = ready.group(1)

    def start_worker(self):
        self.workers.append(
            _annulus("worker", f"--coordinator={self.endpoint}", *self.worker_options)
        )

    def wait_for_workers(self, count, timeout=60.0):
        deadline = time.monotonic() + timeout
        with annulus.connect(self.endpoint) as client:
            while True:
                ready = [w for w in client.status()["workers"] if w["state"] == "ready"]
                if len(ready) == count:
                    return
                assert time.monotonic() < deadline, f"{len(ready)} of {count} workers joined"
                time.sleep(0.05)

    def pause_coordinator(self):
        """Returns when it has stopped, a while after it was told to."""
        self.coordinator.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.coordinator.pid, os.WSTOPPED | os.WNOWAIT)

    def resume_coordinator(self):
        self.coordinator.send_signal(signal.SIGCONT)

    def kill_coordinator(self):
        _kill(self.coordinator)

    def kill_worker(self, i=0):
        _kill(self.workers.pop(i))

    def close(self):
        for process in (*self.workers, self.coordinator):
            if process is not None:
                _kill(process)


def _annulus(*arguments):
    command = [sys.executable, "-m", "annulus", *arguments, "--log-level=error"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _line(process, timeout=60.0):
    ready, _, _ = select.select([process.stdout], [], [], timeout)
    assert ready, "a process said nothing"
    return process.stdout.readline().strip()


def _kill(process):
    process.kill()
    process.wait()
    process.stdout.close()
