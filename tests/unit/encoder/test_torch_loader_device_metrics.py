from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from prometheus_client import generate_latest

from services.encoder import metrics
from services.encoder.torch_loader import _show_device

_DEVICE = "cuda:7"
_LABEL = '{device="cuda:7"}'


@pytest.fixture(autouse=True)
def no_metrics_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 12_345)
    yield
    for gauge in (metrics.DEVICE_MEMORY_BYTES, metrics.DEVICE_UTILIZATION_RATIO):
        gauge.clear()


def _shown() -> list[str]:
    return [line for line in generate_latest().decode().splitlines() if _LABEL in line]


def test_memory_and_utilisation_of_the_gpu_are_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)
    _show_device(_DEVICE)
    assert _shown() == [
        f"textmatch_encoder_device_memory_bytes{_LABEL} 12345.0",
        f"textmatch_encoder_device_utilization_ratio{_LABEL} 0.4",
    ]


def test_without_the_drivers_library_there_is_no_utilisation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "utilization", _fail)
    _show_device(_DEVICE)
    assert _shown() == [f"textmatch_encoder_device_memory_bytes{_LABEL} 12345.0"]


def test_a_driver_that_stops_answering_breaks_no_other_metric(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 40)
    _show_device(_DEVICE)
    monkeypatch.setattr(torch.cuda, "utilization", _fail)
    assert _shown()[1].endswith("NaN")


def _fail(device: str) -> int:
    raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
