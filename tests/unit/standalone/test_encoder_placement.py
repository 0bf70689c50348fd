"""Which encoders `textmatch up` starts, and on what."""

from __future__ import annotations

from pathlib import Path

import pytest

from standalone.encoder_placement import TooFewDevices, on_gpus, on_processors, plan_encoders, visible_gpus
from standalone.stack import choose_ports, process_specs


def test_each_gpu_has_an_encoder_that_sees_no_other():
    plans = on_gpus(2, ["0", "GPU-7", "2"])
    assert [plan.name for plan in plans] == ["encoder-1", "encoder-2"]
    assert [plan.environment["CUDA_VISIBLE_DEVICES"] for plan in plans] == ["0", "GPU-7"]
    assert {plan.environment["TEXTMATCH_ENCODER_DEVICE"] for plan in plans} == {"cuda"}


@pytest.mark.parametrize(
    ("devices", "message"), [(["0"], "--gpus 2: 1 are visible"), ([], "--gpus 2: none is visible")]
)
def test_more_encoders_than_gpus_are_refused(devices: list[str], message: str):
    with pytest.raises(TooFewDevices, match=message):
        on_gpus(2, devices)


def test_one_encoder_is_as_it_always_was():
    [plan] = plan_encoders(1, None, {})
    assert (plan.name, plan.environment) == ("encoder", {})
    [on_gpu] = on_gpus(1, ["3"])
    assert (on_gpu.name, on_gpu.environment["CUDA_VISIBLE_DEVICES"]) == ("encoder", "3")


@pytest.mark.parametrize(("count", "processors", "threads"), [(2, 8, "4"), (3, 8, "2"), (4, 2, "1")])
def test_encoders_share_the_processors(count: int, processors: int, threads: str):
    plans = on_processors(count, processors, {})
    assert [plan.environment for plan in plans] == [{"TEXTMATCH_ENCODER_THREADS": threads}] * count


def test_threads_that_are_set_stay():
    plans = on_processors(2, 8, {"TEXTMATCH_ENCODER_THREADS": "8"})
    assert [plan.environment for plan in plans] == [{}, {}]


@pytest.mark.parametrize(("value", "devices"), [("2,GPU-7", ["2", "GPU-7"]), ("", [])])
def test_devices_that_are_hidden_are_not_used(value: str, devices: list[str]):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == devices


def test_without_a_driver_there_are_no_gpus(tmp_path: Path):
    with pytest.raises(TooFewDevices, match="no nvidia-smi"):
        visible_gpus({"PATH": str(tmp_path)})


def test_the_driver_is_asked_for_the_gpus(tmp_path: Path):
    _nvidia_smi(tmp_path, "printf 'GPU 0: H100 (UUID: GPU-1)\\n  MIG 1g.10gb Device 0: x\\nGPU 1: H100\\n'")
    assert visible_gpus({"PATH": str(tmp_path)}) == ["0", "1"]


def test_a_driver_that_fails_is_named(tmp_path: Path):
    _nvidia_smi(tmp_path, "exit 9")
    with pytest.raises(TooFewDevices, match="nvidia-smi cannot list .* status 9"):
        visible_gpus({"PATH": str(tmp_path)})


def _nvidia_smi(directory: Path, script: str) -> None:
    path = directory / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_processes_of_a_plan_have_ports_of_their_own_and_one_target(tmp_path: Path):
    ports = choose_ports(2, use_defaults=False)
    specs = {
        spec.name: spec for spec in process_specs(tmp_path, ports, {"A": "b"}, None, on_gpus(2, ["4", "6"]))
    }
    first, second = specs["encoder-1"], specs["encoder-2"]
    assert ports.encoder_target == f"ipv4:{first.address},{second.address}"
    assert first.address != second.address
    assert len({spec.metrics_address for spec in specs.values() if spec.metrics_address}) == 5
    for name in ("matcher", "worker"):
        assert specs[name].environment["TEXTMATCH_ENCODER_TARGET"] == ports.encoder_target
    for encoder, device in ((first, "4"), (second, "6")):
        assert encoder.address.endswith(f":{encoder.environment['TEXTMATCH_ENCODER_PORT']}")
        assert encoder.metrics_address.endswith(f":{encoder.environment['TEXTMATCH_ENCODER_METRICS_PORT']}")
        assert (encoder.environment["CUDA_VISIBLE_DEVICES"], encoder.environment["A"]) == (device, "b")
