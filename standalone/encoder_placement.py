"""How many encoders the stack has, and the device of each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textmatch.errors import TextMatchError

_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_THREADS = "TEXTMATCH_ENCODER_THREADS"
_NVIDIA_SMI_SECONDS = 30.0


class TooFewDevices(TextMatchError):
    """The machine has fewer GPUs than requested."""


@dataclass(frozen=True)
class EncoderPlan:
    """One encoder: its name, and its environment variables in addition to those of all processes."""

    name: str
    environment: Mapping[str, str]


def plan_encoders(count: int, gpus: int | None, environment: Mapping[str, str]) -> list[EncoderPlan]:
    """The encoders to start.

    Args:
        count: number of encoders on the device that the settings name.
        gpus: if given, number of GPUs, each with one encoder; replaces `count`.
        environment: environment of all processes.

    Raises:
        TooFewDevices: there are fewer GPUs.
    """
    if gpus is not None:
        return on_gpus(gpus, visible_gpus(environment))
    return on_processors(count, len(os.sched_getaffinity(0)), environment)


def on_gpus(count: int, devices: Sequence[str]) -> list[EncoderPlan]:
    """One encoder on each of the first devices, named as CUDA names them; it sees only that device.

    Raises:
        TooFewDevices: there are fewer devices.
    """
    if count > len(devices):
        found = f"{len(devices)} are visible" if devices else "none is visible"
        raise TooFewDevices(f"--gpus {count}: {found} on this machine")
    environments = [
        {_VISIBLE_DEVICES: device, "TEXTMATCH_ENCODER_DEVICE": "cuda"} for device in devices[:count]
    ]
    return _named(environments)


def on_processors(count: int, processors: int, environment: Mapping[str, str]) -> list[EncoderPlan]:
    """Encoders that share the processors, unless the environment sets the number of threads of each."""
    if count == 1 or environment.get(_THREADS):
        return _named([{}] * count)
    return _named([{_THREADS: str(max(1, processors // count))}] * count)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """CUDA's names of the GPUs of this machine; those in CUDA_VISIBLE_DEVICES, if it is set.

    Raises:
        TooFewDevices: there is no driver.
    """
    if _VISIBLE_DEVICES in environment:
        return [device for device in environment[_VISIBLE_DEVICES].split(",") if device.strip()]
    command = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if command is None:
        raise TooFewDevices("--gpus needs the NVIDIA driver; there is no nvidia-smi on this machine")
    try:
        listed = subprocess.run(  # noqa: S603 -- the driver's own tool
            [command, "--list-gpus"], capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise TooFewDevices(f"--gpus: nvidia-smi cannot list the GPUs: {error}") from error
    # One line for each GPU; the lines of MIG devices are indented.
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return [str(index) for index in range(count)]


def _named(environments: Sequence[Mapping[str, str]]) -> list[EncoderPlan]:
    if len(environments) == 1:
        return [EncoderPlan("encoder", environments[0])]
    return [EncoderPlan(f"encoder-{number}", one) for number, one in enumerate(environments, 1)]
