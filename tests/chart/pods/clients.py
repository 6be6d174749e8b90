"""Pods that are clients, and what they ask for: tensors in files, and the answer that one process
alone gives.
"""

import array
import json
import os
import random
import subprocess
import urllib.request

INSIDE = "/data"  # where a client's pod has the folder of the files
POOL = 1 << 16


def write_npy(path, shape, seed):
    """Normal values, of which only so many differ: a long context must be quick to make."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    rng = random.Random(seed)
    values = array.array("f", (rng.gauss(0, 1) for _ in range(POOL)))
    count = shape[0] * shape[1] * shape[2]
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        while count > 0:
            begin = rng.randrange(POOL // 2)
            part = values[begin : begin + min(count, POOL // 2)]
            part.tofile(file)
            count -= len(part)


def read_npy(path):
    with open(path, "rb") as file:
        data = file.read()
    values = array.array("f")
    values.frombytes(data[10 + int.from_bytes(data[8:10], "little") :])
    return values


class Question:
    """Tensors of a context in files of `folder`, and queries for its last tokens."""

    def __init__(self, folder, name, q_tokens, kv_tokens, heads=4, kv_heads=2, head_dim=32):
        self.folder, self.name = folder, name
        for part, shape in (
            ("q", (q_tokens, heads, head_dim)),
            ("k", (kv_tokens, kv_heads, head_dim)),
            ("v", (kv_tokens, kv_heads, head_dim)),
        ):
            write_npy(os.path.join(folder, self.file(part)), shape, name + part)

    def file(self, part):
        return f"{self.name}-{part}.npy"

    def words(self, folder, pattern, out, *more):
        """Arguments of the program for this question."""
        words = ["attend", "--json", f"--pattern={pattern}"]
        words += [f"--{part}={os.path.join(folder, self.file(part))}" for part in "qkv"]
        return [*words, f"--out={os.path.join(folder, self.file(out))}", *more]

    def expect(self, program, pattern):
        """The answer of one process alone."""
        machine = os.path.join(self.folder, "machine.json")
        with open(machine, "w", encoding="utf-8") as file:
            file.write("{}")  # nothing is said, so that nothing is measured
        words = self.words(self.folder, pattern, "expected", f"--cluster={machine}")
        run(program, words)
        return read_npy(os.path.join(self.folder, self.file("expected")))

    def is_right(self, out, expected):
        answer = read_npy(os.path.join(self.folder, self.file(out)))
        return len(answer) == len(expected) and all(
            abs(a - b) < 1e-4 for a, b in zip(answer, expected, strict=True)
        )


def client_pod(name, namespace, image, folder, args, labels=None, volumes=(), mounts=()):
    """An object Pod that runs the program once with `folder` at INSIDE."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {"app": "client"}},
        "spec": {
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsUser": 65532, "runAsGroup": 65532, "runAsNonRoot": True},
            "containers": [
                {
                    "name": "client",
                    "image": image,
                    "args": list(args),
                    "volumeMounts": [{"name": "data", "mountPath": INSIDE}, *mounts],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
            "volumes": [
                {"name": "data", "hostPath": {"path": folder, "type": "Directory"}},
                *volumes,
            ],
        },
    }


def run(program, words):
    """Runs the program here, as a client or alone."""
    done = subprocess.run((program, *words), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")


def status(address):
    """What the coordinator at an address says of itself; None where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}:7071/status.json", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None
