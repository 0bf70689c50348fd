"""Compiles the kernel of the native engine where there is a compiler; elsewhere other engines do its work."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = Path("textmatch") / "models" / "native"
_LIBRARY = _FOLDER / "libtransformer.so"
_FLAGS = ("-std=c++20", "-O3", "-march=sapphirerapids", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra")
# GCC 12 complains of its own intrinsics.
_QUIET = ("-Wno-maybe-uninitialized",)


class KernelBuildHook(BuildHookInterface[Any]):
    """Runs for wheels, and for editable installs too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and take the library into the wheel."""
        if self.target_name != "wheel" or not self._compile():
            return
        build_data["artifacts"].append(str(_LIBRARY))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compile(self) -> bool:
        compiler = (
            os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        )
        if platform.system() != "Linux" or platform.machine() != "x86_64" or compiler is None:
            self.app.display_warning("no C++ compiler for x86-64: textmatch does without its native engine")
            return False
        command = [compiler, *_FLAGS, *_QUIET, str(_FOLDER / "transformer.cpp"), "-o", str(_LIBRARY)]
        result = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode == 0:
            return True
        print(result.stderr, file=sys.stderr)
        self.app.display_warning("the native engine does not compile here: textmatch does without it")
        return False
