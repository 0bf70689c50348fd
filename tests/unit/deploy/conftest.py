from __future__ import annotations

import pytest

from tests.support.kubernetes import (
    GATEWAY_COMPONENT,
    OVERLAYS,
    SECURITY_COMPONENTS,
    Object,
    objects,
    overlay_objects,
    write_combination,
)


@pytest.fixture(params=[(overlay, secured) for overlay in OVERLAYS for secured in (False, True)], ids=str)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The objects of each overlay in turn, as it is and with the gateway and everything for security."""
    overlay, is_secured = request.param
    return secured_objects(overlay, tmp_path_factory) if is_secured else overlay_objects(overlay)


@pytest.fixture(params=OVERLAYS)
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The objects of each overlay with everything for its security."""
    return secured_objects(request.param, tmp_path_factory)


def secured_objects(overlay: str, folders: pytest.TempPathFactory) -> list[Object]:
    folder = folders.getbasetemp() / f"secured-{overlay}"
    if not folder.exists():
        folder.mkdir()
        write_combination(folder, overlay, GATEWAY_COMPONENT, *SECURITY_COMPONENTS)
    return objects(folder)
