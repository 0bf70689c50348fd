"""Where and how models run, for machines other than this one."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch

from textmatch.models import engines
from textmatch.models.engines import (
    EngineConfig,
    UnusableDevice,
    UnusableEngine,
    decide_engine,
    resolve_device,
    resolve_dtype,
)


def test_cpu_is_cpu():
    assert resolve_device("cpu") == "cpu"


def test_auto_takes_a_gpu_only_if_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engines, "_DEVICES", tmp_path)
    assert resolve_device("auto") == "cpu"
    (tmp_path / "nvidia0").touch()
    assert resolve_device("auto") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize("name", ["", "gpu", "mps", "cuda:x"])
def test_other_names_are_refused(name: str):
    with pytest.raises(UnusableDevice, match="is not auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(UnusableDevice, match="2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx2": True, "amx_bf16": False}, "float32"), ({"amx_bf16": True}, "bfloat16")],
)
def test_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], expected: str
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert resolve_dtype("auto", "cpu") == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((9, 0), "bfloat16")])
def test_bfloat16_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_dtype("auto", "cuda:0") == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken_as_it_is(name: str):
    assert resolve_dtype(name, "cpu") == name


def _decide(
    engine: str = "auto", dtype: str = "auto", obstacle: str = "", device: str = "cpu"
) -> EngineConfig:
    return decide_engine(
        engine, device=device, dtype=dtype, threads=3, cache_directory=Path("cache"), obstacle=obstacle
    )


@pytest.fixture
def has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


@pytest.fixture
def has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})


@pytest.fixture
def openvino_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())


@pytest.mark.usefixtures("openvino_installed")
def test_with_amx_the_native_engine_comes_first():
    config = _decide()
    assert (config.engines, config.dtype) == (("native", "openvino", "torch"), "bfloat16")
    assert (config.device, config.threads, config.cache_directory) == ("cpu", 3, Path("cache"))
    assert config.reason == ""


@pytest.mark.usefixtures("openvino_installed", "has_bfloat16")
def test_without_amx_another_engine_is_taken_without_a_warning(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    config = _decide(obstacle="this processor lacks AMX-BF16")
    assert (config.engines, config.dtype) == (("openvino", "torch"), "bfloat16")
    assert config.reason == "native: this processor lacks AMX-BF16"
    [record] = caplog.records
    assert record.levelno == logging.INFO


@pytest.mark.usefixtures("openvino_installed", "has_no_bfloat16")
def test_without_bfloat16_torch_runs_in_float32():
    config = _decide(obstacle="this processor lacks AVX512")
    assert (config.engines, config.dtype) == (("torch",), "float32")


def test_an_engine_that_is_not_installed_is_left_out_or_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert _decide().engines == ("native", "torch")
    with pytest.raises(UnusableEngine, match='the engine "openvino" is not installed'):
        _decide("openvino")


@pytest.mark.usefixtures("openvino_installed", "has_bfloat16")
@pytest.mark.parametrize(
    ("engine", "dtype", "expected"),
    [
        ("native", "auto", ("native", "torch")),
        ("native", "float32", ("torch",)),
        ("auto", "float32", ("torch",)),
        ("auto", "float16", ("torch",)),
        ("openvino", "float32", ("openvino", "torch")),
        ("torch", "auto", ("torch",)),
    ],
)
def test_settings_decide(engine: str, dtype: str, expected: tuple[str, ...]):
    assert _decide(engine, dtype).engines == expected


@pytest.mark.usefixtures("has_bfloat16")
def test_an_engine_asked_for_by_name_that_cannot_run_is_a_warning(caplog: pytest.LogCaptureFixture):
    assert _decide("native", obstacle="this processor lacks AMX-BF16").engines == ("torch",)
    [record] = caplog.records
    assert record.levelno == logging.WARNING


@pytest.mark.usefixtures("openvino_installed")
@pytest.mark.parametrize("engine", ["auto", "native", "openvino", "torch"])
def test_a_gpu_runs_torch(engine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    config = _decide(engine, device="cuda")
    assert (config.engines, config.device, config.dtype) == (("torch",), "cuda:0", "bfloat16")
