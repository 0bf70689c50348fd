"""Compiles the native engine's kernel where there is a compiler."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path("textmatch") / "models" / "native" / "build.py"


class KernelBuildHook(BuildHookInterface[Any]):
    """Runs for wheels, and for editable installs too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and include the library in the wheel."""
        path = Path(self.root) / _BUILD
        # The images install the dependencies first, with empty packages.
        if self.target_name != "wheel" or not path.exists():
            return
        build = _load(path)
        try:
            build.compile_kernel()
        except build.CannotCompile as error:
            print(error, file=sys.stderr)
            self.app.display_warning("textmatch is installed without its native engine")
            return
        build_data["artifacts"].append(str(_BUILD.with_name(build.LIBRARY.name)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _load(path: Path) -> ModuleType:
    """Import a module by its path: textmatch cannot be imported before it is installed."""
    spec = importlib.util.spec_from_file_location("kernel_build", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
