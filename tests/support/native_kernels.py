"""The native kernel in every form that this processor can run: its tests need no AMX."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

from textmatch.models.native import kernel
from textmatch.models.native.build import compile_kernel, find_compiler

_EMULATION = Path(__file__).parent / "native"
_HEADERS = {"emulated-tiles": "emulated_tiles.h", "emulated-avx512": "emulated_avx512.h"}


def _runnable_forms() -> list[str]:
    """The installed kernel, "amx", and those that are compiled for tests, with emulated instructions."""
    flags = Path("/proc/cpuinfo")
    forms = [] if kernel.kernel_obstacle() else ["amx"]
    if find_compiler() is None:
        return forms
    if flags.exists() and "avx512_bf16" in flags.read_text().split():
        forms.append("emulated-tiles")
    return [*forms, "emulated-avx512"]


FORMS = _runnable_forms()
# Deleted at exit.
_folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def kernel_library(form: str) -> Path:
    """The shared library of one of FORMS; compiled at the first call."""
    if form == "amx":
        return kernel.LIBRARY
    folder = tempfile.TemporaryDirectory(prefix="textmatch-kernel-")
    _folders.append(folder)
    library = Path(folder.name) / f"{form}.so"
    # The processor that compiles runs it, too: it gets no instructions that it lacks.
    emulation = (f'-DTEXTMATCH_EMULATION="{_HEADERS[form]}"', f"-I{_EMULATION}", "-Wno-psabi")
    compile_kernel(library, target=("-march=native", *emulation))
    return library


def compile_sanitized(folder: Path) -> Path:
    """A program that runs the kernel with emulated instructions under sanitizers of memory and arithmetic."""
    program = folder / "sanitized"
    compiler = find_compiler()
    assert compiler is not None
    command = [
        compiler, "-std=c++20", "-O1", "-g", "-pthread", "-Wno-psabi", "-march=native",
        "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
        f'-DTEXTMATCH_EMULATION="{_HEADERS["emulated-avx512"]}"', f"-I{_EMULATION}",
        str(_EMULATION / "sanitized.cpp"), "-o", str(program),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program
