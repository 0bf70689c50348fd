"""The OpenVINO engine, for CPUs that compute in bfloat16."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textmatch.models.engines import OPENVINO, EngineConfig
from textmatch.models.packing import NotPackable, PackedModel, PackedRows, PackingCheck, arrays

# OpenVINO reports its use over the network unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

_log = logging.getLogger(__name__)

# Incremented when PackedModel changes: conversions of older versions must not be found.
_GRAPH_FORM = 2
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class OpenVinoEngine:
    """A compiled transformer; `run` is called from one thread at a time."""

    name = OPENVINO

    def __init__(self, compiled: openvino.CompiledModel, position_offset: int) -> None:
        self._request = compiled.create_infer_request()
        self._position_offset = position_offset

    @classmethod
    def load(
        cls, model: PreTrainedModel, check: PackingCheck, config: EngineConfig, model_id: str
    ) -> OpenVinoEngine:
        """Convert the model, or read an earlier conversion from the cache, and compile it for this processor.

        An earlier conversion that cannot be read or computes something else is replaced.

        Raises:
            NotPackable: OpenVINO cannot run such a model.
        """
        path = config.cache_directory / f"{model_id}-{_PRECISIONS[config.dtype]}-{_GRAPH_FORM}.xml"
        if path.exists():
            try:
                return cls._checked(openvino.Core().read_model(path), check, config)
            except (NotPackable, RuntimeError) as error:
                _log.warning("the conversion in the cache is damaged and is made again: %s", error)
        try:
            return cls._checked(_convert(model, check, path, config.dtype), check, config)
        except RuntimeError as error:
            raise NotPackable(f"OpenVINO cannot run it: {error}") from error

    @classmethod
    def _checked(cls, graph: openvino.Model, check: PackingCheck, config: EngineConfig) -> OpenVinoEngine:
        properties = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[config.dtype],
            "INFERENCE_NUM_THREADS": config.threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        engine = cls(openvino.Core().compile_model(graph, "CPU", properties), check.position_offset)
        check.verify(engine.run(check.rows).numpy(), config.dtype)
        return engine

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden) float32 on the CPU; valid until the next call."""
        outputs = self._request.infer(arrays(rows, self._position_offset), share_outputs=True)
        return torch.from_numpy(outputs[0])


def _convert(model: PreTrainedModel, check: PackingCheck, path: Path, dtype: str) -> openvino.Model:
    example = tuple(map(torch.from_numpy, arrays(check.rows, check.position_offset)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about each constant
        graph = openvino.convert_model(PackedModel(model, check.form), example_input=example)
    for graph_input in graph.inputs:
        graph_input.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    graph.validate_nodes_and_infer_types()
    # Halves the memory; a computation in 16 bits loses no accuracy.
    _save(graph, path, compress=dtype != "float32")
    return graph


def _save(graph: openvino.Model, path: Path, *, compress: bool) -> None:
    """Write the files atomically. A cache that cannot be written is logged and is not an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            unfinished = Path(scratch) / path.name
            openvino.save_model(graph, unfinished, compress_to_fp16=compress)
            unfinished.with_suffix(".bin").replace(path.with_suffix(".bin"))
            unfinished.replace(path)
    except OSError as error:
        _log.warning("cannot write the converted model into the cache: %s", error)
