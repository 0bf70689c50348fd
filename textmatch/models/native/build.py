"""Compiles the kernel: hatch_build.py when textmatch is installed, its tests with emulated instructions.

Imports only the standard library, because textmatch's dependencies are not installed yet when it runs.
After a change in C++: `python -m textmatch.models.native.build`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libtransformer.so"
_SOURCE = FOLDER / "transformer.cpp"
# GCC 12 warns about its own intrinsics.
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Wno-maybe-uninitialized")
# The oldest processor with AMX. The kernel checks the features it needs before it computes.
_TARGET = ("-march=sapphirerapids",)


class CannotCompile(Exception):
    """There is no compiler for x86-64 Linux, or it fails; the message says which."""


def compile_kernel(library: Path = LIBRARY, target: Sequence[str] = _TARGET) -> None:
    """Compile the kernel into `library`.

    Args:
        library: the shared library to write.
        target: flags that choose the processor, and for tests the emulation.

    Raises:
        CannotCompile: there is no compiler for x86-64 Linux, or it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CannotCompile("there is no C++ compiler for x86-64 Linux")
    command = [compiler, *_FLAGS, *target, str(_SOURCE), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        raise CannotCompile(f"{compiler} failed:\n{result.stderr}")


def find_compiler() -> str | None:
    """`$CXX` or the first C++ compiler on the path; None if this is not x86-64 Linux."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    found = (shutil.which(name) for name in ("c++", "g++", "clang++"))
    return os.environ.get("CXX") or next(filter(None, found), None)


if __name__ == "__main__":
    try:
        compile_kernel()
    except CannotCompile as error:
        sys.exit(str(error))
