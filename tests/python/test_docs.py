"""Every block of code in docs/ is run as it stands there, page by page."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "pages").glob("*.md"))
BLOCK = re.compile(r"^```(python|sh|cpp)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Shell:
    """One bash for all blocks of a page; what they start ends with it."""

    END = "the block has ended"

    def __init__(self, folder):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        self.bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, block):
        self.bash.stdin.write(f"set -e\n{block}\nset +e\necho {self.END!r}\n")
        self.bash.stdin.flush()
        for line in self.bash.stdout:
            if line.strip() == self.END:
                return
        raise AssertionError(f"failed with {self.bash.wait()}: {block}")

    def close(self):
        os.killpg(self.bash.pid, signal.SIGKILL)
        self.bash.wait()


def compile_and_run(block, folder):
    built = ROOT / "build" / "release" / "libannulus_client.so"
    if not built.exists() or not shutil.which("cmake"):
        return
    prefix = folder / "prefix"
    install = ["cmake", "--install", built.parent, "--prefix", prefix, "--component", "client"]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    (library,) = prefix.rglob("libannulus_client.so")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(library.parent / "pkgconfig")}
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "annulus"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout.split()
    (folder / "page.cc").write_text(block)
    program = folder / "page"
    rpath = f"-Wl,-rpath,{library.parent}"
    compiler = ["c++", "-std=c++20", "page.cc", "-o", program, *flags, rpath]
    subprocess.run(compiler, check=True, cwd=folder)
    subprocess.run([program], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, tmp_path, monkeypatch):
    text = page.read_text()
    for port in ("7070", "7071"):
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path)
    names = {}
    try:
        for kind, block in BLOCK.findall(text):
            if kind == "sh":
                shell.run(block)
            elif kind == "cpp":
                compile_and_run(block, tmp_path)
            else:
                exec(compile(block, f"{page.name}: {block[:60]!r}", "exec"), names)
    finally:
        shell.close()
