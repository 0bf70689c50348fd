"""Engines: what runs the transformer of a model. A new one is a new file and a line in ENGINES."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textmatch.errors import TextMatchError
from textmatch.models.packing import NotPackable, PackedRows

_log = logging.getLogger(__name__)

AUTO = "auto"
# Name -> where its class is; imported only when it is asked for, since each needs packages of its own.
ENGINES = {
    "native": "textmatch.models.native.engine:NativeEngine",
    "openvino": "textmatch.models.openvino_engine:OpenVinoEngine",
    "torch": "textmatch.models.torch_engine:TorchEngine",
}


class UnusableEngine(TextMatchError):
    """The engine asked for is not installed."""


@dataclass(frozen=True)
class EngineOptions:
    """Which engine to take.

    `name` is "auto" or one of ENGINES, `threads` what a forward pass on a CPU may use; what an engine
    prepares for a model is kept in `cache_directory`.
    """

    name: str
    threads: int
    cache_directory: Path


@dataclass(frozen=True)
class EngineConfig:
    """How to run one model. `device` is as `resolve_device` returns it."""

    model_id: str
    dtype: torch.dtype
    device: str
    threads: int
    cache_directory: Path


class Engine(Protocol):
    """Runs one transformer on packed rows, from one thread at a time."""

    @property
    def name(self) -> str: ...

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden): the last states of tokens; valid until the next call."""
        ...


class EngineClass(Protocol):
    """How an engine comes about."""

    def load(self, model: PreTrainedModel, placement: EngineConfig) -> Engine:
        """Prepare a model, given in float32 on the CPU.

        Raises:
            NotPackable: this engine cannot run it.
        """
        ...


def start_engine(
    model: PreTrainedModel, options: EngineOptions, *, model_id: str, dtype: torch.dtype, device: str
) -> Engine | None:
    """The engine asked for, or the next one that can run the model; None if none can.

    Args:
        model: the bare transformer, in float32 on the CPU.
        options: which engine.
        model_id: what it is kept under.
        dtype: of the computation.
        device: as `resolve_device` returns it.

    Raises:
        UnusableEngine: the engine asked for by name is not installed.
    """
    placement = EngineConfig(model_id, dtype, device, options.threads, options.cache_directory)
    for name in _candidates(options.name, placement):
        try:
            return _engine_class(name).load(model, placement)
        except ImportError as error:
            if options.name == name:
                raise UnusableEngine(f'the engine "{name}" is not installed: {error}') from error
        except NotPackable as error:
            _log.warning("engine %s cannot run %s: %s", name, model_id, error)
    return None


def _candidates(name: str, placement: EngineConfig) -> list[str]:
    """Auto is the fastest first, on CPUs with bfloat16; every engine falls back to torch."""
    if name != AUTO:
        return list(dict.fromkeys([name, "torch"]))
    if placement.device == "cpu" and placement.dtype == torch.bfloat16:
        return ["native", "openvino", "torch"]
    return ["torch"]


def _engine_class(name: str) -> EngineClass:
    module_name, _, class_name = ENGINES[name].partition(":")
    return cast("EngineClass", getattr(importlib.import_module(module_name), class_name))
