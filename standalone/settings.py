"""Settings of the one-machine stack. The processes that it starts read their own settings."""

from __future__ import annotations

import os
from collections.abc import Mapping


def environment() -> Mapping[str, str]:
    """The environment that every process of the stack inherits."""
    return os.environ
