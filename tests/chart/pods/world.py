"""What tests of pods need: a machine of their own within this one, the chart, the image.

Each runs in namespaces of processes, mounts and networks of its own: whatever it leaves ends with
it, also when it is killed.
"""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import chart
from cluster import Cluster
from containers import Podman, missing

SKIPPED = 77
INSIDE = "ANNULUS_PODS_INSIDE"
OWN = (
    "setpriv", "--pdeathsig=KILL",
    "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
PROGRAM, ARCHIVE = map(os.path.abspath, sys.argv[1:3]) if len(sys.argv) > 2 else (None, None)
NAMESPACE = chart.NAMESPACE
IMAGE = None
podman = None


def why_not():
    """Why no pods can run here; None if they can."""
    if missing():
        return f"{', '.join(missing())}: not there; ./dev image installs them"
    if os.geteuid() != 0:
        return "only root may make namespaces and control groups"
    if not os.path.exists(ARCHIVE):
        return f"{ARCHIVE}: not there; ./dev image makes it"
    if chart.helm() is None:
        return "helm: not there; ./dev chart --tools installs it"
    done = subprocess.run((*OWN, "true"), capture_output=True, text=True)
    return done.stderr.strip() if done.returncode != 0 else None


def install(test, *values, before=()):
    """(Cluster, objects) of the chart with these values, over objects that are there before;
    until the class's tests are over.
    """
    objects = chart.render(*values)
    folder = tempfile.mkdtemp(dir=podman.folder)
    os.chmod(folder, 0o755)
    cluster = Cluster(podman, folder)
    test.addClassCleanup(cluster.close)
    cluster.apply([*before, *objects])
    return cluster, objects


def load_image():
    """The image's name. It must be of this very program, or the tests would tell of another."""
    podman.load(ARCHIVE)
    version = subprocess.run((PROGRAM, "version"), check=True, capture_output=True, text=True)
    name = "localhost/annulus:" + version.stdout.split()[1]
    folder = podman("image", "mount", name).strip()
    same = filecmp.cmp(PROGRAM, os.path.join(folder, "usr/local/bin/annulus"), shallow=False)
    podman("image", "unmount", name)
    if not same:
        skip(f"{ARCHIVE}: of another program; ./dev image makes it anew")
    return name


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


def try_container():
    """Skips where no container can run."""
    try:
        podman("run", "--rm", "--network=none", "--pull=never", IMAGE, "version")
    except RuntimeError as error:
        if "OCI" in str(error) or "runc" in str(error):
            skip(error)
        raise


def main():
    """Runs the tests of the script that was called, within namespaces of their own."""
    if os.environ.get(INSIDE) is None:
        why = why_not()
        if why is not None:
            skip(why)
        folder = tempfile.mkdtemp(prefix="annulus-pods-")
        try:
            os.chmod(folder, 0o755)
            done = subprocess.run(
                (*OWN, sys.executable, *sys.argv),
                env=dict(os.environ, **{INSIDE: folder}),
                start_new_session=True,
            )
        finally:
            Podman(folder).remove_cgroups()
            shutil.rmtree(folder, ignore_errors=True)
        sys.exit(done.returncode)
    global podman, IMAGE
    podman = Podman(os.environ[INSIDE])
    IMAGE = load_image()
    try_container()
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
