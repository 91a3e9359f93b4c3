"""What the operators' calls into the CUDA kernels share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch

from hsta_kernels import backends
from hsta_kernels.ops.launch.cpu import DTYPES


def refuse(name: str, tensor: torch.Tensor) -> str | None:
    """Why the CUDA kernels cannot read `tensor`, or None."""
    if tensor.device.type != ("cpu" if backends.cuda_emulated else "cuda"):
        return f"{name} is on {tensor.device}"
    if tensor.dtype not in DTYPES:
        return f"{name} is {tensor.dtype}; the kernels take float32, bfloat16 and float16"
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return f"{name} is on a GPU older than sm_80"
    return None


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself when all its rows begin at multiples of 16 bytes, which kernels read in place; else a copy.

    Its last dimension is contiguous.
    """
    unit = 16 // tensor.element_size()
    if tensor.data_ptr() % 16 == 0 and all(stride % unit == 0 for stride in tensor.stride()[:-1]):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def module() -> ModuleType:
    assert backends.cuda is not None  # an operator only gets here once its backend was found available
    return backends.cuda


def current_device(tensor: torch.Tensor) -> AbstractContextManager:
    """Kernels are launched on the current device: this makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def stream(tensor: torch.Tensor) -> int:
    """The stream that PyTorch's own work on `tensor` is queued on."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
