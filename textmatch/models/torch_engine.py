"""Torch itself: runs everywhere, on CPUs and GPUs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textmatch.models.engines import EngineConfig
from textmatch.models.packing import PackedModel, PackedRows, PackingCheck, arrays


class TorchEngine:
    """The transformer in eager torch; `run` is called from one thread at a time."""

    name = "torch"

    def __init__(self, model: PreTrainedModel, placement: EngineConfig, position_offset: int) -> None:
        self._device = torch.device(placement.device)
        self._model = PackedModel(model)
        self._model.to(device=self._device, dtype=placement.dtype)
        self._position_offset = position_offset

    @classmethod
    def load(cls, model: PreTrainedModel, placement: EngineConfig) -> TorchEngine:
        """Bring the model into its precision and onto its device.

        Raises:
            NotPackable: the model is of another kind than this engine runs.
        """
        probe = PackingCheck(model)
        engine = cls(copy.deepcopy(model), placement, probe.position_offset)
        probe.check(engine.run(probe.rows).float().cpu().numpy())
        return engine

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden) in the engine's precision on its device."""
        inputs = [torch.from_numpy(array) for array in arrays(rows, self._position_offset)]
        if self._device.type == "cuda":
            inputs = [array.pin_memory().to(self._device, non_blocking=True) for array in inputs]
        with torch.inference_mode():
            states: Tensor = self._model(*inputs)
        return states
