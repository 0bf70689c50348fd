"""OpenVINO: the fastest way to run a transformer on a CPU that computes in bfloat16."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textmatch.models.engines import EngineConfig
from textmatch.models.packing import NotPackable, PackedModel, PackedRows, PackingCheck, arrays

# OpenVINO reports over the network that it is used, unless this package is missing: it has a stub for that.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

_log = logging.getLogger(__name__)

# Counted up when PackedModel changes, so that conversions of older versions are not found.
_GRAPH_FORM = 1
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class OpenVinoEngine:
    """A compiled transformer; `run` is called from one thread at a time."""

    name = "openvino"

    def __init__(self, compiled: openvino.CompiledModel, position_offset: int) -> None:
        self._request = compiled.create_infer_request()
        self._position_offset = position_offset

    @classmethod
    def load(cls, model: PreTrainedModel, placement: EngineConfig) -> OpenVinoEngine:
        """Convert, or read the conversion of an earlier start, and compile for this processor.

        Raises:
            NotPackable: the model is of another kind than this engine runs, or this is no CPU.
        """
        if placement.device != "cpu":
            raise NotPackable(f"OpenVINO runs on the CPU here, not on {placement.device}")
        probe = PackingCheck(model)
        core = openvino.Core()
        precision = _PRECISIONS[placement.dtype]
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": placement.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        path = placement.cache_directory / f"{placement.model_id}-{precision}-{_GRAPH_FORM}.xml"
        try:
            graph = core.read_model(path) if path.exists() else _convert(model, probe, path, placement.dtype)
            engine = cls(core.compile_model(graph, "CPU", properties), probe.position_offset)
        except RuntimeError as error:
            raise NotPackable(f"OpenVINO refuses it: {error}") from error
        probe.check(engine.run(probe.rows).numpy())
        return engine

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden) float32 on the CPU; valid until the next call."""
        outputs = self._request.infer(arrays(rows, self._position_offset), share_outputs=True)
        return torch.from_numpy(outputs[0])


def _convert(model: PreTrainedModel, probe: PackingCheck, path: Path, dtype: torch.dtype) -> openvino.Model:
    example = tuple(map(torch.from_numpy, arrays(probe.rows, 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of each constant it meets
        graph = openvino.convert_model(PackedModel(model), example_input=example)
    for graph_input in graph.inputs:
        graph_input.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    graph.validate_nodes_and_infer_types()
    # Half the memory; what is computed in 16 bits loses nothing by it.
    _keep(graph, path, compress=dtype != torch.float32)
    return graph


def _keep(graph: openvino.Model, path: Path, *, compress: bool) -> None:
    """Never a half-written file under the final name; a cache that cannot be written is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            unfinished = Path(scratch) / path.name
            openvino.save_model(graph, unfinished, compress_to_fp16=compress)
            unfinished.with_suffix(".bin").replace(path.with_suffix(".bin"))
            unfinished.replace(path)
    except OSError as error:
        _log.warning("cannot keep the converted model: %s", error)
