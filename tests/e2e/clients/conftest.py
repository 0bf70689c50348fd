from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client_programs import LANGUAGES, Program, build_client, build_go_tools
from tests.support.secured_stack import SecuredStack, running_secured_stack


@pytest.fixture(scope="session", params=LANGUAGES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The client of each language in turn."""
    return build_client(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def ghz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program. With empty caches, its build takes minutes."""
    folder = tmp_path_factory.mktemp("go-tools")
    build_go_tools(Path(__file__).parent / "tools", folder)
    return folder / "ghz"


@pytest.fixture(scope="session")
def secured_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredStack]:
    """One stack for all tests."""
    with running_secured_stack(tmp_path_factory.mktemp("secured")) as running:
        yield running
