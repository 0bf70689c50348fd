from __future__ import annotations

import pytest

from tests.support.native_kernels import FORMS, kernel_library
from tests.support.qdrant import own_qdrant, qdrant_url
from textmatch.models.native import kernel

__all__ = ["own_qdrant", "qdrant_url"]


@pytest.fixture(params=FORMS or [pytest.param("amx", marks=pytest.mark.skip("no AMX and no C++ compiler"))])
def kernel_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every form of the native kernel that this processor can run, in the place of the installed one."""
    monkeypatch.setattr(kernel, "LIBRARY", kernel_library(request.param))
    return str(request.param)
