"""Decides how models run: device, precision and engine.

An engine runs a model's transformer: `native` (textmatch's own kernel) and `openvino` on CPUs that compute
in bfloat16, `torch` everywhere. `decide_engine` decides once for the process which engines to try;
`start_engine` starts the first of them that can run a model. A model that the native engine has run before
starts from the cache, without torch.

Importing torch takes seconds. This module imports it only if Linux shows a GPU, or if the native kernel does
not run and torch is needed anyway.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from textmatch.errors import TextMatchError
from textmatch.models.model_resolver import DEFAULT_CACHE_DIRECTORY
from textmatch.models.native.kernel import kernel_obstacle

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from textmatch.models.packing import PackedRows, PackingCheck

_log = logging.getLogger(__name__)

AUTO = "auto"
NATIVE = "native"
OPENVINO = "openvino"
TORCH = "torch"
# Imported only when they are tried, because each needs further packages.
_ENGINE_CLASSES = {
    NATIVE: "textmatch.models.native.engine:NativeEngine",
    OPENVINO: "textmatch.models.openvino_engine:OpenVinoEngine",
    TORCH: "textmatch.models.packed_inference:TorchEngine",
}

# CPU features as torch names them: x86 with AMX or AVX-512, and Arm.
_CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
_FIRST_CUDA_WITH_BFLOAT16 = (8, 0)
# Where Linux shows the GPUs that torch can use: NVIDIA's driver, WSL and ROCm.
_DEVICES = Path("/dev")
_GPU_FILES = ("nvidia[0-9]*", "dxg", "kfd")


class UnusableDevice(TextMatchError):
    """This machine has no such device."""


class UnusableEngine(TextMatchError):
    """The requested engine is not installed."""


@dataclass(frozen=True)
class EngineConfig:
    """How models run.

    The default is the reference that engines are compared with: sentence-transformers in float32 on the CPU.

    Attributes:
        engines: to be tried in this order for each model; sentence-transformers runs the rest.
        device: as torch names it, "cpu" or "cuda:0".
        dtype: of the computation, "float32", "bfloat16" or "float16".
        threads: of a forward pass on a CPU; 0: the engine chooses.
        cache_directory: where engines store converted models, and where packed models are unpacked.
        reason: which engines were ruled out and why, for logs.
    """

    engines: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    cache_directory: Path = DEFAULT_CACHE_DIRECTORY
    reason: str = ""


REFERENCE = EngineConfig()


class Engine(Protocol):
    """Runs one transformer on packed rows, from one thread at a time."""

    @property
    def name(self) -> str: ...

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden): the last states of tokens; valid until the next call."""
        ...


class EngineClass(Protocol):
    """Makes an engine."""

    def load(
        self, model: PreTrainedModel, check: PackingCheck, config: EngineConfig, model_id: str
    ) -> Engine:
        """Prepare a model, given in float32 on the CPU, and `check` the states that the engine computes.

        Raises:
            NotPackable: this engine cannot run it.
        """
        ...


def decide_engine(
    engine: str,
    *,
    device: str,
    dtype: str,
    threads: int,
    cache_directory: Path,
    obstacle: str | None = None,
) -> EngineConfig:
    """Decide which engines to try, where and in which precision.

    Args:
        engine: "auto" (the fastest first), "native", "openvino" or "torch". Torch replaces an engine that the
            machine or the other settings rule out.
        device: as `resolve_device` takes it.
        dtype: as `resolve_dtype` takes it.
        threads: of a forward pass on a CPU; 0: the engine chooses.
        cache_directory: where engines store converted models.
        obstacle: why the native kernel cannot run, "" if it can; None: detect it.

    Raises:
        UnusableDevice: this machine has no such device.
        UnusableEngine: the engine requested by name is not installed.
    """
    candidates = (NATIVE, OPENVINO, TORCH) if engine == AUTO else tuple(dict.fromkeys((engine, TORCH)))
    device = resolve_device(device)
    obstacles = {TORCH: ""}
    if NATIVE in candidates:
        obstacles[NATIVE] = _native_obstacle(device, dtype, obstacle)
        if not obstacles[NATIVE]:
            dtype = "bfloat16"
    dtype = resolve_dtype(dtype, device)
    if OPENVINO in candidates:
        obstacles[OPENVINO] = _openvino_obstacle(device, dtype, is_auto=engine == AUTO)
    engines = tuple(name for name in candidates if not obstacles[name])
    reason = "; ".join(f"{name}: {obstacles[name]}" for name in candidates if obstacles[name])
    # A processor without AMX is normal, and logged as such. An ignored setting is a warning.
    level = logging.INFO if engine in (AUTO, engines[0]) else logging.WARNING
    _log.log(level, "engines to try", extra={"engines": engines, "dtype": dtype, "ruled_out": reason})
    return EngineConfig(engines, device, dtype, threads, cache_directory, reason)


def start_engine(
    model: PreTrainedModel, config: EngineConfig, model_id: str, max_tokens: int = 512
) -> Engine | None:
    """The first of `config.engines` that can run the model; None if none can.

    Args:
        model: the bare transformer, in float32 on the CPU.
        config: the engines to try, device and precision.
        model_id: names what the engine writes into the cache.
        max_tokens: tokens of the longest text that will be computed.
    """
    if not config.engines:
        return None
    from textmatch.models.packing import NotPackable, PackingCheck

    try:
        check = PackingCheck(model, max_tokens)
    except NotPackable as error:
        _log.warning("engines cannot run %s: %s", model_id, error)
        return None
    for name in config.engines:
        module_name, _, class_name = _ENGINE_CLASSES[name].partition(":")
        try:
            engine_class: EngineClass = getattr(importlib.import_module(module_name), class_name)
            return engine_class.load(model, check, config, model_id)
        except (NotPackable, ImportError) as error:
            _log.warning("engine %s cannot run %s: %s", name, model_id, error)
    return None


def _native_obstacle(device: str, dtype: str, obstacle: str | None) -> str:
    if device != "cpu":
        return f"it runs on the CPU, not on {device}"
    if dtype not in (AUTO, "bfloat16"):
        return f"it computes in bfloat16, not in {dtype}"
    return kernel_obstacle() if obstacle is None else obstacle


def _openvino_obstacle(device: str, dtype: str, *, is_auto: bool) -> str:
    if device != "cpu":
        return f"it runs on the CPU, not on {device}"
    if is_auto and dtype != "bfloat16":
        return f"it is not faster than torch in {dtype}"
    if importlib.util.find_spec(OPENVINO) is not None:
        return ""
    if not is_auto:
        raise UnusableEngine(f'the engine "{OPENVINO}" is not installed: pip install openvino')
    return "it is not installed"


def resolve_device(name: str) -> str:
    """The device as torch names it: "cpu" or "cuda:0".

    Args:
        name: "auto" (the first GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UnusableDevice: this machine has no such device.
    """
    if name == "cpu" or (name == AUTO and not _shows_gpu()):
        return "cpu"
    import torch

    if name == AUTO:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise UnusableDevice(f'device "{name}" is not auto, cpu, cuda or cuda:N')
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise UnusableDevice(f'no device "{name}": this machine has {count} CUDA devices')
    return f"cuda:{int(number or 0)}"


def resolve_dtype(name: str, device: str) -> str:
    """The precision to run in: "float32", "bfloat16" or "float16".

    Args:
        name: one of them, or "auto": bfloat16 where the processor computes with it, else float32.
        device: as `resolve_device` returns it.
    """
    if name != AUTO:
        return name
    import torch

    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        computes_bfloat16 = any(capabilities.get(flag) for flag in _CPU_BFLOAT16)
    else:
        computes_bfloat16 = torch.cuda.get_device_capability(device) >= _FIRST_CUDA_WITH_BFLOAT16
    return "bfloat16" if computes_bfloat16 else "float32"


def _shows_gpu() -> bool:
    """Whether there may be a GPU, detected without torch."""
    return sys.platform != "linux" or any(any(_DEVICES.glob(pattern)) for pattern in _GPU_FILES)
