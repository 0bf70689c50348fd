from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.qdrant import URL, own_qdrant
from tests.support.redis import own_redis_server
from tests.support.stack import Stack, running_stack

__all__ = ["own_qdrant", "own_redis_server"]


# Two stacks cannot share a Qdrant, and other modules start stacks of their own.
@pytest.fixture(scope="module" if URL else "session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack with the English models for all end-to-end tests that do not break it."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running
