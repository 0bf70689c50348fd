"""The clients of docs/clients and programs written in Go, built by their languages' own tools.

If a tool is missing or cannot download what it needs, the test is skipped with a reason. In CI, a missing
tool fails the test; a registry of packages that does not answer does not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Begins the reason of a test that is skipped because packages cannot be downloaded.
NO_REGISTRY = "a registry of packages does not answer"
BUILD_SECONDS = 540
RUN_SECONDS = 120

# Where Go's own installer puts it, which is often not on the PATH.
_GO_FOLDER = "/usr/local/go/bin"
# What a build in the working tree leaves there.
_BUILT = {"go": ("textmatch", "client"), "java": ("target",), "typescript": ("node_modules", "gen", "dist")}
_NO_NETWORK = re.compile(
    r"dial tcp|no such host|TLS handshake timeout|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|"
    r"Could not transfer artifact|Unknown host|in offline mode|module lookup disabled"
)
_TOO_OLD = re.compile(r"requires go >= \S+|requires Maven version \S+|release version \d+ not supported")


@dataclass(frozen=True)
class Program:
    """A client that has been built. `docs/clients/README.md` describes its arguments."""

    language: str
    command: tuple[str, ...]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it with settings like TEXTMATCH_MATCHER_TARGET."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TEXTMATCH_")}
        return subprocess.run(
            [*self.command, *arguments],
            env={**inherited, "LC_ALL": "C.UTF-8", **environment},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )


def build_client(language: str, folder: Path) -> Program:
    """Build the client of a language in a folder, from copies of its sources and of the protos."""
    sources = f"docs/clients/{language}"
    shutil.copy(ROOT / "buf.yaml", folder)
    shutil.copytree(ROOT / "protos", folder / "protos")
    shutil.copytree(ROOT / sources, folder / sources, ignore=shutil.ignore_patterns(*_BUILT[language]))
    return Program(language, _BUILDS[language](folder / sources))


def build_go_tools(sources: Path, folder: Path) -> None:
    """Build the tools that the go.mod of a folder names, such as `folder/ghz`."""
    _go("build", "-o", f"{folder}/", "tool", folder=sources)


def buf() -> str:
    """The path of buf, which `make check` installs."""
    found = ROOT / "node_modules" / ".bin" / "buf"
    if not found.exists():
        pytest.skip("buf is not installed: run make check")
    return str(found)


def _build_go(folder: Path) -> tuple[str, ...]:
    _run_tool([buf(), "generate"], folder, _go_environment())
    _go("vet", ".", folder=folder)
    _go("build", "-o", "client", ".", folder=folder)
    return (str(folder / "client"),)


def _build_java(folder: Path) -> tuple[str, ...]:
    _run_tool([_installed("mvn"), "-B", "-q", "-ntp", "package"], folder)
    # A short run pays for an optimizing compiler and a parallel collector with twice its processor time.
    flags = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
    return _installed("java"), *flags, "-jar", str(folder / "target" / "client.jar")


def _build_typescript(folder: Path) -> tuple[str, ...]:
    npm = _installed("npm")
    _run_tool([npm, "ci", "--no-audit", "--no-fund"], folder)
    _run_tool([npm, "run", "build"], folder)
    return _installed("node"), str(folder / "dist" / "src" / "main.js")


_BUILDS: Mapping[str, Callable[[Path], tuple[str, ...]]] = {
    "go": _build_go,
    "java": _build_java,
    "typescript": _build_typescript,
}
LANGUAGES = tuple(_BUILDS)


def _go(*arguments: str, folder: Path) -> None:
    _run_tool([_installed("go", _GO_FOLDER), *arguments], folder, _go_environment())


def _go_environment() -> dict[str, str]:
    path = os.pathsep.join([os.environ["PATH"], _GO_FOLDER])
    return {"PATH": path, "GOFLAGS": "-mod=readonly -buildvcs=false"}


def _installed(name: str, folder: str = "") -> str:
    found = shutil.which(name) or (shutil.which(name, path=folder) if folder else None)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _run_tool(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    run = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if run.returncode == 0:
        return
    output = f"{run.stdout}{run.stderr}"
    for line in output.splitlines():
        problem = f"{Path(command[0]).name} {command[1]}: {line.strip()[:300]}"
        if _NO_NETWORK.search(line):
            pytest.skip(f"{NO_REGISTRY}: {problem}")
        if _TOO_OLD.search(line):
            pytest.skip(problem)
    pytest.fail(f"{' '.join(command)} failed:\n{output[-5000:]}", pytrace=False)
