"""Where a model runs and in which precision."""

from __future__ import annotations

import torch

from textmatch.errors import TextMatchError

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# As torch names them: x86 with AMX or AVX-512, and Arm.
_CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
_FIRST_CUDA_WITH_BFLOAT16 = (8, 0)


class UnusableDevice(TextMatchError):
    """There is no such device on this machine."""


def resolve_device(name: str) -> str:
    """The device as torch names it: "cpu" or "cuda:0".

    Args:
        name: "auto" (the first GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        UnusableDevice: it is not there.
    """
    if name == AUTO:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnusableDevice(f'device "{name}" is not auto, cpu, cuda or cuda:N') from None
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise UnusableDevice(f'device "{name}" is not auto, cpu, cuda or cuda:N')
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise UnusableDevice(f'no device "{name}": this machine has {torch.cuda.device_count()} CUDA devices')
    return f"cuda:{index}"


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The precision to run in: for "auto" bfloat16 where the processor computes with it, else float32.

    Args:
        name: "auto", "float32", "bfloat16" or "float16".
        device: as `resolve_device` returns it.
    """
    if name != AUTO:
        return DTYPES[name]
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _has_bfloat16(device: str) -> bool:
    if device != "cpu":
        return torch.cuda.get_device_capability(device) >= _FIRST_CUDA_WITH_BFLOAT16
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(flag) for flag in _CPU_BFLOAT16)
