from __future__ import annotations

import pytest

from tests.support.kubernetes import OVERLAYS, Object, overlay_objects


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[Object]:
    """The objects of each overlay in turn."""
    return overlay_objects(request.param)
