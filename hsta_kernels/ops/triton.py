"""What the operators' calls into their Triton kernels share. Imports no Triton: that is left to the first launch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch

from hsta_kernels import backends

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class LazyModule(ModuleType):
    """A module that is imported when something of it is first used: importing Triton takes a second."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def refuse(name: str, tensor: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot read `tensor`, or None."""
    if tensor.device.type != ("cpu" if backends.triton_interpreted else "cuda"):
        return f"{name} is on {tensor.device}"
    if tensor.dtype not in DTYPES:
        return f"{name} is {tensor.dtype}; the kernels take float32, bfloat16 and float16"
    if tensor.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return f"{name} is on a GPU older than sm_80"
    return None


def current_device(tensor: torch.Tensor) -> AbstractContextManager:
    """Triton launches on the current device: this makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def precision(dtype: torch.dtype) -> str:
    """How float32 products are computed, as torch's own setting says; other dtypes have one way."""
    matmul = torch.backends.cuda.matmul
    if dtype != torch.float32:
        return "ieee"
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9; reading the older name after the newer one was set raises
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


def in_units(strides: Sequence[int]) -> tuple[list[int], int]:
    """Strides in units of 8 elements where all are multiples of it, else of one, and the unit.

    A kernel that multiplies by a constant unit is known to the compiler to load 16 aligned bytes at a time.
    """
    unit = 8 if all(stride % 8 == 0 for stride in strides) else 1
    return [stride // unit for stride in strides], unit


def power_of_2(number: int) -> int:
    """The smallest power of 2 that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()
