"""The Dockerfile and the compose file, as far as no engine is needed to see it."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.kubernetes import ROOT

DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy" / "docker" / "compose.yaml").read_text())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PYPROJECT["project"]["version"]
TARGETS = ("encoder-cuda", "encoder-cpu", "matcher", "worker", "gateway")
# What only the encoder and training may bring.
HEAVY = {"torch", "transformers", "sentence-transformers", "openvino", "peft"}


def test_every_target_exists_and_runs_as_an_unprivileged_user():
    stages = _stages()
    assert set(TARGETS) <= stages.keys()
    for target in TARGETS:
        lines, stage = [], target
        while stage in stages:
            parent, body = stages[stage]
            lines = [*body, *lines]
            stage = parent
        users = [line.split()[1] for line in lines if line.startswith("USER")]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "Kubernetes can only check a number"
        assert not any(re.search(r"gcc|g\+\+|build-essential|apt-get", line) for line in lines)
        assert "CMD" in {line.split()[0] for line in lines if line.strip()}


def test_what_a_wheel_is_built_from_is_sent_to_the_engine_and_nothing_else():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    build = PYPROJECT["tool"]["hatch"]["build"]
    hook = {"hatch_build.py"} if "custom" in build.get("hooks", {}) else set()
    assert sent == {
        "constraints.txt",
        "pyproject.toml",
        *PYPROJECT["project"]["license-files"],
        "README.md",
        *build["targets"]["wheel"]["packages"],
        *hook,
    }
    assert all((ROOT / name).exists() for name in sent)


def test_everything_is_pinned():
    assert "PIP_CONSTRAINT=/src/constraints.txt" in DOCKERFILE
    bases = re.findall(r"^ARG \w*IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert bases
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in bases)
    images = [service["image"] for service in COMPOSE["services"].values()]
    for image in [*bases, *images]:
        assert re.search(r":v?\d+\.\d+\.\d+", image), image
    assert [image for image in images if image.startswith("textmatch/")] == [
        f"textmatch/{name}:{VERSION}" for name in ("encoder-cpu", "matcher", "worker", "gateway")
    ]


@pytest.mark.parametrize("extra", ["matcher", "worker", "gateway"])
def test_other_processes_than_the_encoder_are_installed_without_torch(extra: str):
    assert f"'.[{extra}]'" in DOCKERFILE
    assert not _closure("textmatch", extra) & HEAVY


def test_the_encoder_is_installed_with_torch():
    assert HEAVY - {"openvino"} <= _closure("textmatch", "encoder")


def test_compose_publishes_on_loopback_only_and_has_health_checks():
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    assert {"redis", "qdrant"} <= COMPOSE["volumes"].keys()


def test_code_in_health_checks_compiles():
    checks = [service["healthcheck"]["test"] for service in COMPOSE["services"].values()]
    sources = [check[3] for check in checks if check[1:3] == ["python", "-c"]]
    assert len(sources) == 2
    for source in sources:
        compile(source, "healthcheck", "exec")


def _stages() -> dict[str, tuple[str, list[str]]]:
    """Name of each stage -> what it is built from, its lines."""
    stages: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in DOCKERFILE.splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            parent, name = match.groups()
            stages[name] = (parent, [])
        elif name and not line.startswith("#"):
            stages[name][1].append(line)
    return stages


def _closure(package: str, extra: str) -> set[str]:
    """Every distribution that installing `package[extra]` brings."""
    found: set[str] = set()
    waiting = [(package, frozenset({extra}))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        for text in _requirements(name):
            requirement = Requirement(text)
            environments = [{"extra": chosen} for chosen in (extras or {""})]
            if requirement.marker and not any(requirement.marker.evaluate(one) for one in environments):
                continue
            found.add(canonicalize_name(requirement.name))
            waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        # For another platform or an extra that is not installed here.
        return []
