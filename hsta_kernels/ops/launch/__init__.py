"""What the launches of every operator's kernels share: here of all backends, then a module a backend."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuse(name: str, tensor: torch.Tensor, device: str) -> str | None:
    """Why kernels on a `device` cannot read `tensor`, or None."""
    if tensor.device.type != device:
        return f"{name} is on {tensor.device}"
    if tensor.dtype not in DTYPES:
        return f"{name} is {tensor.dtype}; the kernels take float32, bfloat16 and float16"
    return None


def contiguous_like(tensor: torch.Tensor) -> torch.Tensor:
    """An output of the shape and dtype of `tensor`, in half the time of ``tensor.new_empty(tensor.shape)``."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def current_device(tensor: torch.Tensor) -> AbstractContextManager:
    """Kernels are launched on the current device: this makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
