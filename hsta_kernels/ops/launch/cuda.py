"""What the operators' calls into the CUDA kernels share."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops import launch


def refuse(name: str, tensor: torch.Tensor) -> str | None:
    """Why the CUDA kernels cannot read `tensor`, or None."""
    reason = launch.refuse(name, tensor, "cpu" if backends.cuda_emulated else "cuda")
    if reason is None and tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return f"{name} is on a GPU older than sm_80"
    return reason


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself when all its rows begin at multiples of 16 bytes, which kernels read in place; else a copy.

    Its last dimension is contiguous.
    """
    unit = 16 // tensor.element_size()
    if tensor.data_ptr() % 16 == 0 and all(stride % unit == 0 for stride in tensor.stride()[:-1]):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def run(kernel: str, *arguments: Any) -> None:
    """Enqueues a kernel of hsta_kernels/_cuda.pyi on the stream that PyTorch's own work on its tensors is queued on."""
    tensor = next(argument for argument in arguments if isinstance(argument, torch.Tensor))
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
    with launch.current_device(tensor):
        getattr(backends.cuda, kernel)(*arguments, partial(tensor.new_empty, dtype=torch.float32), stream)
