"""What the operators' calls into the CPU kernels share."""

from __future__ import annotations

from types import ModuleType

import torch

from hsta_kernels import backends

# csrc/common/dtype.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def refuse(name: str, tensor: torch.Tensor) -> str | None:
    """Why the CPU kernels cannot read `tensor`, or None."""
    if tensor.device.type != "cpu":
        return f"{name} is on {tensor.device}"
    if tensor.dtype not in DTYPES:
        return f"{name} is {tensor.dtype}; the kernels take float32, bfloat16 and float16"
    return None


def module() -> ModuleType:
    assert backends.cpu is not None  # an operator only gets here once its backend was found available
    return backends.cpu
