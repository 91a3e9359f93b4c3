"""Calls into csrc/cuda/absorbed_attention_{forward,backward}.cu."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops import launch
from hsta_kernels.ops.cross_modal_attention import cpu

_MAX_HEADS, _WIDTHS = 16, (96, 192, 384, 768)
_HALF_TYPES = (torch.bfloat16, torch.float16)


def refuse(tokens: torch.Tensor, num_heads: int = 1, dropout_rate: float = 0.0) -> str | None:
    if dropout_rate:
        return f"dropout_rate is {dropout_rate}; the kernels drop nothing"
    if tokens.shape[-1] not in _WIDTHS:
        return f"tokens has rows of {tokens.shape[-1]}; the kernels take {', '.join(map(str, _WIDTHS))}"
    if num_heads > _MAX_HEADS:
        return f"there are {num_heads} heads; the kernels take up to {_MAX_HEADS}"
    if tokens.dtype not in _HALF_TYPES:
        return f"tokens is {tokens.dtype}; the kernels take bfloat16 and float16"
    reason = launch.refuse("tokens", tokens, "cpu" if backends.cuda_emulated else "cuda")
    if reason is None and tokens.is_cuda:
        major, minor = torch.cuda.get_device_capability(tokens.device)
        if major not in (9, 10):
            reason = f"tokens is on a GPU of sm_{major}{minor}; the kernels need the clusters of sm_90 and sm_100"
    return reason


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself when all its rows begin at multiples of 16 bytes, which kernels read in place; else a copy.

    Its last dimension is contiguous.
    """
    unit = 16 // tensor.element_size()
    if tensor.data_ptr() % 16 == 0 and all(stride % unit == 0 for stride in tensor.stride()[:-1]):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _run(kernel: str, *arguments: Any) -> None:
    """Enqueues a kernel of hsta_kernels/_cuda.pyi on the stream that PyTorch's own work on its tensors is queued on."""
    tensor = next(argument for argument in arguments if isinstance(argument, torch.Tensor))
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
    with launch.current_device(tensor):
        getattr(backends.cuda, kernel)(*arguments, stream)


def forward(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float, *no_dropout: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    u, query_token, tokens = map(_aligned, (u, query_token, tokens))
    return cpu.forward(u, query_token, tokens, eps, run=_run)


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    *no_dropout: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_z, u, query_token, tokens = map(_aligned, (grad_z, u, query_token, tokens))
    return cpu.backward(grad_z, u, query_token, tokens, z, stats, eps, run=_run)
