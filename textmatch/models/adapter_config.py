"""What an adapter directory says of itself. Free of torch, for code that only looks for models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter_directory(path: Path) -> bool:
    """Whether `path` holds an adapter, not a full model."""
    return (path / ADAPTER_CONFIG).is_file()


def adapter_base_name(path: Path) -> str:
    """The name of the model that the adapter in `path` was trained on."""
    return str(read_json(path / ADAPTER_CONFIG)["base_model_name_or_path"])


def is_cross_encoder_adapter(path: Path) -> bool:
    """Whether the adapter in `path` reads pairs; else it makes embeddings."""
    return bool(read_json(path / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
