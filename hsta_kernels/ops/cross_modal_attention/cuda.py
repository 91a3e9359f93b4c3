"""Calls into csrc/cuda/absorbed_attention_{forward,backward}.cu."""

from __future__ import annotations

import torch

from hsta_kernels.ops.launch import cuda as launch

_MAX_HEADS = 32


def refuse(tokens: torch.Tensor, num_heads: int = 1) -> str | None:
    if tokens.shape[-1] % 8:
        return f"tokens has rows of {tokens.shape[-1]}; the kernels take multiples of 8"
    if num_heads > _MAX_HEADS:
        return f"there are {num_heads} heads; the kernels take up to {_MAX_HEADS}"
    return launch.refuse("tokens", tokens)


def forward(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads = u.shape[:2]
    z, stats = u.new_empty(u.shape), u.new_empty((batch, heads, 2))
    if z.numel():
        u, query_token, tokens = launch.aligned(u), launch.aligned(query_token), launch.aligned(tokens)
        with launch.current_device(tokens):
            workspace = _workspace(u, tokens)
            launch.module().absorbed_attention_forward(
                *_arguments(u, query_token, tokens, eps, z, stats), workspace.data_ptr(), launch.stream(tokens)
            )
    return z, stats


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grads = u.new_empty(u.shape), query_token.new_empty(query_token.shape), tokens.new_empty(tokens.shape)
    if z.numel():
        grad_z, u, query_token, tokens = (launch.aligned(tensor) for tensor in (grad_z, u, query_token, tokens))
        with launch.current_device(tokens):
            workspace = _workspace(u, tokens)
            launch.module().absorbed_attention_backward(
                *_arguments(u, query_token, tokens, eps, z, stats),
                grad_z.data_ptr(),
                *(grad.data_ptr() for grad in grads),
                workspace.data_ptr(),
                launch.stream(tokens),
            )
    return grads


def _workspace(u: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return u.new_empty(launch.module().absorbed_attention_workspace(*_kind(u, tokens)))


def _kind(u: torch.Tensor, tokens: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    batch, heads, width = u.shape
    return launch.DTYPES[tokens.dtype], (batch, tokens.shape[1], heads, width)


def _arguments(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float, z: torch.Tensor, stats: torch.Tensor
) -> tuple:
    return (
        *_kind(u, tokens),
        eps,
        u.data_ptr(),
        query_token.data_ptr(),
        query_token.stride(0),
        tokens.data_ptr(),
        tokens.stride()[:2],
        z.data_ptr(),
        stats.data_ptr(),
    )
