#!/usr/bin/env python3
"""Makes one wheel that brings all that it needs: wheel.py BUILD_FOLDER OUT_FOLDER.

The package is built in BUILD_FOLDER, which may have been built before. auditwheel adds the shared
libraries of this distribution; UCX's modules, which UCX loads by a path beside its own library, are
added here. To be run by the Python of a virtual environment with python/requirements.txt.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where auditwheel puts libraries; UCX looks for its modules in the folder ucx beside libucs.
LIBRARIES = "annulus.libs"
# UCX looks on this distribution's own path for a module that is not beside it, and one from there
# brings a second UCX: so all modules go along but those of its benchmarks, which it never loads.
UNUSED_MODULES = "_perftest"
# What UCX's modules for ROCm are linked with brings a compiler of 100 MB: where a machine has it,
# they use it, and elsewhere they do not load.
NOT_BROUGHT = ("libhsa-runtime64.so.*", "libamdhip64.so.*")
# More than that is a library that nobody meant to bring.
WHEEL_BYTES_MAX = 40_000_000


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def build(folder: Path, out: Path) -> Path:
    """The package as it is built, without libraries."""
    settings = {
        "build-dir": folder,
        # What a developer's build has stays in it.
        "cmake.define.ANNULUS_BENCH": "ON",
        "cmake.define.BUILD_TESTING": "ON",
        "cmake.define.Python_EXECUTABLE": sys.executable,
    }
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        out,
        *(f"-C{name}={value}" for name, value in settings.items()),
        ROOT,
    )
    (wheel,) = out.glob("annulus-*.whl")
    return wheel


def ucx_modules(program: Path) -> list[Path]:
    """The modules of the UCX that the program is linked with, under the names that UCX tries."""
    linked = subprocess.run(
        ["ldd", str(program)], check=True, capture_output=True, text=True
    ).stdout
    libucs = re.search(r"libucs\.so\S* => (\S+)", linked)
    if not libucs:
        sys.exit("wheel.py: the program is not linked with UCX")
    library = Path(libucs.group(1)).resolve()
    extension = library.name.removeprefix("libucs")  # ".so.0.0.0", as the copy will be called
    found = (library.parent / "ucx").glob(f"lib*{extension}")
    return [path for path in found if UNUSED_MODULES not in path.name]


def add_modules(wheel: Path, folder: Path) -> None:
    unpacked = folder / "unpacked"
    shutil.unpack_archive(wheel, unpacked, "zip")
    program = unpacked / "annulus" / "bin" / "annulus"
    program.chmod(0o755)
    modules = unpacked / LIBRARIES / "ucx"
    modules.mkdir(parents=True)
    for module in ucx_modules(program):
        shutil.copy(module, modules)
    wheel.unlink()
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", wheel.parent, unpacked)


def main() -> None:
    folder, out = (Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        bare = build(folder, Path(temporary) / "bare")
        add_modules(bare, Path(temporary))
        (bare,) = bare.parent.glob("annulus-*.whl")
        for old in out.glob("annulus-*.whl"):
            old.unlink()
        excluded = [argument for name in NOT_BROUGHT for argument in ("--exclude", name)]
        run(
            *(sys.executable, "-m", "auditwheel", "repair", "--strip"),
            *(*excluded, "--wheel-dir", out, bare),
        )
    (wheel,) = out.glob("annulus-*.whl")
    size = wheel.stat().st_size
    if size > WHEEL_BYTES_MAX:
        sys.exit(f"wheel.py: {wheel} has {size} bytes; expected at most {WHEEL_BYTES_MAX}")
    print(wheel)


if __name__ == "__main__":
    main()
