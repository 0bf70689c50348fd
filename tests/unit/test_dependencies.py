"""What we install: every package is pinned, is what the pin says, and comes under a licence that we know.

Known holes need a look into a database on the network; SECURITY.md says how.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PERMISSIVE = re.compile(
    r"\b(apache|mit|bsd|isc|psf|python software foundation|mpl|mozilla|0bsd|unlicense|zlib|cc0|hpnd|lgpl)\b",
    re.I,
)
# What torch's wheel for CUDA needs. NVIDIA's licence allows use and redistribution, but is not an open one.
CUDA = re.compile(r"(cuda|nvidia)-(?!ml-py)")
NVIDIA = re.compile(r"\bnvidia\b", re.I)


def pins() -> dict[str, str]:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def needed(name: str = "textmatch", extras: frozenset[str] = frozenset({"dev"})) -> dict[str, Distribution]:
    """Every package that `make setup` installs here, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(name, extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one, wanted = waiting.pop()
        if (one, wanted) in seen:
            continue
        seen.add((one, wanted))
        found[one] = distribution(one)
        waiting += _requirements(found[one], wanted)
    del found[name]
    return found


def _requirements(package: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in package.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def licence_of(package: Distribution) -> str:
    """All that its metadata say about it, or else the titles of its licence files."""
    said = package.metadata
    classifiers = [line for line in said.get_all("Classifier") or [] if line.startswith("License")]
    named = " ".join([said.get("License-Expression") or "", *classifiers, said.get("License") or ""]).strip()
    if not named:
        files = [package.read_text(f"licenses/{one}") or "" for one in said.get_all("License-File") or []]
        named = " ".join(text.strip().partition("\n")[0] for text in files)
    return named[:2_000]


PACKAGES = needed()


def test_the_list_is_not_empty():
    assert {"grpcio", "torch", "redis", "wrapt"} <= PACKAGES.keys()


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_every_package_is_pinned_known_and_free(name: str):
    package, pinned = PACKAGES[name], pins()
    assert name in pinned, f"{name} {package.version} is not in constraints.txt"
    assert Version(package.version).public == Version(pinned[name]).public
    licence = licence_of(package)
    known = PERMISSIVE.search(licence) or (
        CUDA.match(name) and (NVIDIA.search(licence) or name == "cuda-toolkit")
    )
    assert known, f"{name} has the licence {licence!r}"


def test_every_requirement_has_a_lower_bound():
    texts = [text for text in distribution("textmatch").requires or [] if not text.startswith("textmatch[")]
    assert texts
    for requirement in map(Requirement, texts):
        operators = {one.operator for one in requirement.specifier}
        assert ">=" in operators, f"{requirement} has no lower bound"


def test_every_pin_is_within_the_bounds():
    for requirement in map(Requirement, distribution("textmatch").requires or []):
        if requirement.name != "textmatch":
            pinned = pins()[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pinned, prereleases=True), f"{requirement}, {pinned}"
