"""Settings of the one-machine stack. What it starts reads its own settings; these only add to them."""

from __future__ import annotations

import os
from collections.abc import Mapping


def environment() -> Mapping[str, str]:
    """The environment that every process of the stack starts from."""
    return os.environ
