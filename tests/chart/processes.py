"""Rendered pods as processes of this machine: their own commands, on loopback."""

import base64
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import chart

TOKENS = {name: f"a-token-of-{name}s" for name in ("worker", "reader", "tenant")}
NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -batch"
SUBJECT_NAMES = "IP:127.0.0.1,DNS:localhost"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def make_certificates(folder, names=SUBJECT_NAMES):
    """tls.crt, tls.key and ca.crt, as a Secret of cert-manager has them; one authority for all."""
    folder.mkdir()
    openssl(folder, "req -x509", NEW_KEY, "-keyout ca.key -out ca.crt -subj /CN=ca")
    renew_certificate(folder, names)


def renew_certificate(folder, names=SUBJECT_NAMES):
    """Another tls.crt and tls.key by the authority that is there."""
    openssl(folder, "req", NEW_KEY, "-keyout tls.key -out csr -subj /CN=annulus")
    (folder / "names").write_text(f"subjectAltName={names}\n")
    signed = "x509 -req -in csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names"
    openssl(folder, signed, "-out tls.crt")


def openssl(folder, *words):
    command = ["openssl", *" ".join(words).split()]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


class Processes:
    """What is rendered, running; ends with ``with``. Names of services are loopback's, ports are
    free ones, and files lie in a folder. Of what this machine has not, GPUs are CPUs and devices
    of networks are lo."""

    def __init__(self, rendered, folder, program):
        self.rendered, self.folder, self.program = rendered, Path(folder), program
        self.running, self.logs, self.pages = [], [], {}
        (self.grpc,) = free_ports(1)
        self.write_files()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()

    def write_files(self):
        for name in ("config", "auth"):
            (self.folder / name).mkdir()
        for role, token in TOKENS.items():
            (self.folder / role).mkdir()
            (self.folder / role / "token").write_text(token)
        make_certificates(self.folder / "tls")
        for one in self.rendered:
            if one["kind"] == "ConfigMap":
                for name, text in (one.get("data") or {}).items():
                    (self.folder / "config" / name).write_text(text)
            if one["kind"] == "Secret":
                for name, text in one["stringData"].items():
                    (self.folder / "auth" / name).write_text(text)
        file = self.folder / "auth" / "auth.json"
        auth = json.loads(file.read_text()) if file.exists() else {}
        (self.folder / "auth" / "jwks.json").write_text(json.dumps({"keys": [a_key()]}))
        for role, token in TOKENS.items():
            sha256 = hashlib.sha256(token.encode()).hexdigest()
            tenant = {} if role == "worker" else {"tenant": "lab"}
            entry = {"name": role, "sha256": sha256, "role": role, **tenant}
            auth.setdefault("tokens", []).append(entry)
        file.write_text(json.dumps(auth))

    def here(self, argument, role, http, data):
        argument = argument.replace("0.0.0.0", "127.0.0.1").replace("[::]", "127.0.0.1")
        argument = re.sub(r"\[?\$\(POD_IP\)\]?:7072", f"127.0.0.1:{data}", argument)
        argument = re.sub(r"\$\(POD_NAME\)[.\w-]+:7072", f"localhost:{data}", argument)
        argument = re.sub(r"\br-[-.a-z]+:\d+", f"127.0.0.1:{self.grpc}", argument)
        argument = argument.replace("127.0.0.1:7070", f"127.0.0.1:{self.grpc}")
        argument = argument.replace(":7071", f":{http}").replace("$(POD_NAME)", "pod")
        argument = argument.replace("/etc/annulus/token", str(self.folder / role))
        argument = argument.replace("/etc/annulus", str(self.folder))
        for option, value in (("net-devices", "lo"), ("backend", "cpu"), ("transports", "tcp")):
            argument = re.sub(f"^--{option}=.*", f"--{option}={value}", argument)
        return argument

    def command(self, container, http=0, data=0):
        role = "worker" if container["name"] == "worker" else "reader"
        return [self.program, *(self.here(word, role, http, data) for word in container["args"])]

    def start(self, container):
        """Starts a container's command; its pages are at the port that is given back."""
        http, data = free_ports(2)
        self.begin(self.command(container, http, data))
        return http

    def begin(self, command):
        log = self.folder / f"{len(self.running)}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(),
            )
        self.running.append(process)
        self.logs.append(log)
        return process

    def run(self, container):
        """A container that ends by itself: its exit code and all that it said."""
        command = self.command(container)
        options = {"capture_output": True, "text": True, "env": environment(), "timeout": 60}
        done = subprocess.run(command, **options)
        return done.returncode, done.stdout + done.stderr

    def wait_for(self, port, page, words="", timeout=60.0):
        """The page's text, once it is well and has these words."""
        deadline = time.monotonic() + timeout
        while True:
            answer = get(port, page)
            if answer is not None and words in answer:
                return answer
            for process, log in zip(self.running, self.logs, strict=True):
                if process.poll() is not None and -process.returncode != signal.SIGKILL:
                    raise AssertionError(f"{process.args}\n{log.read_text()}")
            if time.monotonic() >= deadline:
                logs = "\n".join(log.read_text() for log in self.logs)
                raise AssertionError(f"{page} is not well after {timeout} s\n{logs}")
            time.sleep(0.05)


def environment():
    """This process's, with the settings of sanitizers, but none of the program's own."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("ANNULUS_")}
    return {**others, "ANNULUS_THREADS": "1"}


def get(port, page):
    """A page's text, None where there is none or it is not 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def a_key():
    """A JWK of which nobody has the private half."""
    numbers = {name: base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=") for name in "xy"}
    return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "none", "x": numbers["x"]}


def containers(rendered, kind):
    return [pod["containers"][0] for one, pod in chart.pod_specs(rendered) if one["kind"] == kind]
