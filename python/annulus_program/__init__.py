"""Starts the program that the wheel brings, without loading the library first."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Becomes ``annulus`` with this process's arguments."""
    program = Path(__file__).parent.parent / "annulus" / "bin" / "annulus"
    os.execv(program, [str(program), *sys.argv[1:]])
