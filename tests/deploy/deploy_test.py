"""The files of deploy/ that others' tools read: systemd units, the Containerfile, the pod for a laptop;
and what `./dev check` looks for in errors' texts.

    deploy_test.py ANNULUS        the program
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPLOY = os.path.join(ROOT, "deploy")
HADOLINT = os.path.join(ROOT, "build", "venv", "bin", "hadolint")
PROGRAM = os.path.abspath(sys.argv.pop()) if len(sys.argv) > 1 else None
INSTALLED = "/usr/local/bin/annulus"
EXPOSURE_MAX = 2.0

sys.path.insert(0, DEPLOY)
import check_sources  # noqa: E402


def output(*command):
    outcome = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return outcome.returncode, outcome.stdout


def read(*path):
    with open(os.path.join(DEPLOY, *path), encoding="utf-8") as file:
        return file.read()


def options_of(command):
    """The options of a command and their variables, as its help names them."""
    code, text = output(PROGRAM, command, "--help")
    assert code == 0, text
    return set(re.findall(r"(--[a-z-]+)", text)), set(re.findall(r"\[(ANNULUS_[A-Z_]+)\]", text))


class UnitsTest(unittest.TestCase):
    def units(self):
        for command in ("coordinator", "worker"):
            yield command, f"annulus-{command}.service", read("systemd", f"annulus-{command}.service")

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not there")
    def test_they_are_clean_and_expose_little(self):
        with tempfile.TemporaryDirectory(prefix="annulus-units-") as folder:
            for _, name, text in self.units():
                path = os.path.join(folder, name)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text.replace(INSTALLED, PROGRAM))
                self.assertEqual(output("systemd-analyze", "verify", path), (0, ""))
                _, report = output("systemd-analyze", "security", "--offline=yes", "--no-pager", path)
                exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
                self.assertLessEqual(float(exposure.group(1)), EXPOSURE_MAX, report)

    def test_the_program_knows_their_variables(self):
        for command, name, text in self.units():
            self.assertIn(f"ExecStart={INSTALLED} {command}\n", text)
            used = set(re.findall(r"ANNULUS_[A-Z_]+(?==)", text))
            self.assertTrue(used, name)
            self.assertLessEqual(used, options_of(command)[1], name)

    def test_a_worker_may_drain_before_it_is_killed(self):
        drain_s = re.search(r"--drain-s N .*\((\d+)\)", output(PROGRAM, "worker", "--help")[1])
        stop_s = re.search(r"^TimeoutStopSec=(\d+)$", read("systemd", "annulus-worker.service"), re.M)
        self.assertGreater(int(stop_s.group(1)), int(drain_s.group(1)) + 5)


class ContainersTest(unittest.TestCase):
    @unittest.skipUnless(os.access(HADOLINT, os.X_OK), "./dev image has not installed hadolint")
    def test_the_containerfile_is_clean(self):
        self.assertEqual(output(HADOLINT, os.path.join(DEPLOY, "Containerfile")), (0, ""))

    def test_the_pod_names_this_version_and_its_options(self):
        text = read("annulus.kube.yaml")
        version = output(PROGRAM, "version")[1].split()[1]
        self.assertEqual(set(re.findall(r"image: (\S+)", text)), {f"localhost/annulus:{version}"})
        known = options_of("coordinator")[0] | options_of("worker")[0]
        used = set(re.findall(r"(?<![\w-])--[a-z-]+", re.sub(r"(?m)^\s*#.*", "", text)))
        self.assertTrue(used)
        self.assertLessEqual(used, known)


class SourcesTest(unittest.TestCase):
    def test_errors_have_one_form(self):
        for line in ('"k is ", k, ", expected 1"', '"plan: expected one"', '"calls_max is ", max'):
            self.assertTrue(check_sources.has_other_form(line), line)
        for line in ('"k: ", k, "; expected 1"', '(a, ", ", expected)', '"calls_max: ", max, "; "'):
            self.assertFalse(check_sources.has_other_form(line), line)


if __name__ == "__main__":
    unittest.main()
