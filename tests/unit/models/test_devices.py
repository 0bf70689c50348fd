from __future__ import annotations

import pytest
import torch

from textmatch.models.devices import UnusableDevice, dtype_name, resolve_device, resolve_dtype


def test_cpu_is_cpu():
    assert resolve_device("cpu") == "cpu"


def test_auto_takes_a_gpu_only_if_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda:0"


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
    [({"avx2": True, "amx_bf16": False}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], expected: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert resolve_dtype("auto", "cpu") == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((9, 0), torch.bfloat16)])
def test_bfloat16_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_dtype("auto", "cuda:0") == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken_as_it_is(name: str):
    assert dtype_name(resolve_dtype(name, "cpu")) == name
