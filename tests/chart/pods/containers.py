"""Containers of Podman and runc, with a storage of their own. Their networks are not Podman's."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time

NEEDED = (
    "podman",
    "runc",
    "conmon",
    "iptables-restore",
    "nsenter",
    "setpriv",
    "unshare",
    "ip",
    "ss",
)

POD_CGROUPS = "/libpod_parent/"
ENDED = ("exited", "stopped")  # what Podman says of a container whose end it has noticed
NOTICED_S_MAX = 10


def missing():
    """The programs that are needed and not there."""
    return [name for name in NEEDED if shutil.which(name) is None]


class Podman:
    """Podman with everything that it keeps in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        config = os.path.join(folder, "containers.conf")
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
        with open(config, "w", encoding="utf-8") as file:
            # What this machine does not grant, a container cannot ask for.
            file.write(
                "[containers]\n"
                f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
                '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
                'lock_type = "file"\n'
                'runtime = "runc"\n'
                '[network]\nnetwork_backend = "netavark"\n'
                f'network_config_dir = "{os.path.join(folder, "networks")}"\n'
            )
        self.environment = dict(os.environ, CONTAINERS_CONF=config)
        self.cgroups = "/" + os.path.basename(folder)

    def __call__(self, *words, stderr=subprocess.PIPE):
        """What podman prints."""
        command = (
            "podman", "--root", os.path.join(self.folder, "storage"), "--runroot",
            os.path.join(self.folder, "run"), "--tmpdir", os.path.join(self.folder, "tmp"),
            "--storage-driver", "vfs", *words,
        )  # fmt: skip
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            env=self.environment,
        )
        if done.returncode != 0:
            raise RuntimeError(f"podman {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout

    def load(self, archive):
        self("load", "--quiet", "--input", archive)

    def start(self, name, options, image, args):
        """A Container that runs."""
        self(
            "run", "--detach", "--name", name, "--pull", "never", "--cgroup-parent", self.cgroups,
            "--log-driver", "k8s-file", *options, image, *args,
        )  # fmt: skip
        return Container(self, name)

    def remove_cgroups(self):
        """Podman leaves the folders of its groups behind, its own for pods too."""
        for root, folders, _ in os.walk("/sys/fs/cgroup", topdown=False):
            for folder in folders:
                path = os.path.join(root, folder) + "/"
                if self.cgroups + "/" in path or POD_CGROUPS in path:
                    with contextlib.suppress(OSError):  # another Podman may use it
                        os.rmdir(path)


class Container:
    def __init__(self, podman, name):
        self.podman, self.name = podman, name
        self.pid = self.inspect()["State"]["Pid"]

    def inspect(self):
        return json.loads(self.podman("container", "inspect", self.name))[0]

    def is_running(self):
        if self.pid == 0:
            return False
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as file:
                return file.read().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def exit_code(self):
        """Once it has ended, and Podman has noticed."""
        state = self.inspect()["State"]
        while state["Status"] not in ENDED:
            time.sleep(0.05)
            state = self.inspect()["State"]
        return state["ExitCode"]

    def logs(self):
        """Standard output and error."""
        return self.podman("logs", self.name, stderr=subprocess.STDOUT)

    def kill(self, number=signal.SIGKILL):
        if self.pid == 0:
            return  # it had ended before Podman said who it is, and 0 is this process's own group
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def stop(self, grace_s):
        """SIGTERM, and SIGKILL where that has not ended it in time; SIGKILL alone without any."""
        if grace_s > 0:
            self.kill(signal.SIGTERM)
        end = time.monotonic() + grace_s
        while self.is_running() and time.monotonic() < end:
            time.sleep(0.05)
        self.kill()

    def status(self):
        """What the kernel says of its first process."""
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)

    def mounts(self):
        """Options of its mounts, by where they are."""
        with open(f"/proc/{self.pid}/mounts", encoding="ascii", errors="replace") as file:
            return {words[1]: words[3].split(",") for words in map(str.split, file)}

    def memory(self):
        """(most that was used, limit, processes killed for it), of its control group."""
        with open(f"/proc/{self.pid}/cgroup", encoding="ascii") as file:
            groups = dict(line.strip().split(":", 2)[1:] for line in file)
        if "memory" in groups:  # version 1
            folder = "/sys/fs/cgroup/memory" + groups["memory"]
            names = ("memory.max_usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control")
        else:
            folder = "/sys/fs/cgroup" + groups[""]
            names = ("memory.peak", "memory.max", "memory.events")
        texts = []
        for name in names:
            with open(os.path.join(folder, name), encoding="ascii") as file:
                texts.append(file.read())
        kills = dict(line.split() for line in texts[2].splitlines())
        return int(texts[0]), int(texts[1]), int(kills["oom_kill"])

    def remove(self):
        """Podman that has not noticed its end would signal a process that is gone, and fail."""
        end = time.monotonic() + NOTICED_S_MAX
        while not self.is_running() and self.inspect()["State"]["Status"] not in ENDED:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        self.podman("rm", "--force", "--time", "0", "--volumes", self.name)
