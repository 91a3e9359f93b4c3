"""The custom ops and the autograd Function of space-time attention."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.dispatch import call, custom_op, gradient
from hsta_kernels.ops.space_time_attention import cpu, cuda, reference, triton

# Each module has forward(qkv, T, N, axis, P, scale) -> (out, stats), stats_shape(qkv, axis, P),
# and backward(grad_out, qkv, out, stats, T, N, axis, P, scale) -> grad_qkv.
OPERATOR = backends.Operator(
    "space_time_attention",
    {"cpu": cpu, "cuda": cuda, "triton": triton},
    lambda tensor: (tensor(1, 9, 3, 2, 32), 2, 4, "time", 1),
)


@custom_op("space_time_attention_forward")
def _forward(
    qkv: torch.Tensor,
    num_frames: int,
    num_patches: int,
    axis: str,
    num_prefix_tokens: int,
    scale: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    grid = (num_frames, num_patches, axis, num_prefix_tokens, scale)
    return OPERATOR.implementations[backend].forward(rows_contiguous(qkv), *grid)


@_forward.register_fake
def _(qkv, num_frames, num_patches, axis, num_prefix_tokens, scale, backend):
    batch, length, _, heads, head_dim = qkv.shape
    out = qkv.new_empty((batch, length, heads, head_dim))
    stats_shape = OPERATOR.implementations[backend].stats_shape(qkv, axis, num_prefix_tokens)
    return out, qkv.new_empty(stats_shape, dtype=torch.float32)


@custom_op("space_time_attention_backward")
def _backward(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    stats: torch.Tensor,
    num_frames: int,
    num_patches: int,
    axis: str,
    num_prefix_tokens: int,
    scale: float,
    backend: str,
) -> torch.Tensor:
    grid = (num_frames, num_patches, axis, num_prefix_tokens, scale)
    tensors = (rows_contiguous(grad_out), rows_contiguous(qkv), out, stats)
    return OPERATOR.implementations[backend].backward(*tensors, *grid)


@_backward.register_fake
def _(grad_out, qkv, out, stats, num_frames, num_patches, axis, num_prefix_tokens, scale, backend):
    return qkv.new_empty(qkv.shape)


class SpaceTimeAttention(torch.autograd.Function):
    """Saves the output and softmax statistics of queries; the backward pass recomputes the probabilities.

    The statistics, float32, are m = max_j s_j and Σ_j 2^(s_j - m) of the scores s_j = scale·log2(e)·q·k_j, for the
    queries whose whole row an implementation's backward does not see at once. Their log-sum-exp would do, but rounded
    to float32 it puts an error of several ulp on every probability of its row.
    """

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, *arguments: Any) -> torch.Tensor:
        out, stats = call(_forward, qkv, *arguments)
        ctx.save_for_backward(qkv, out, stats)
        ctx.arguments = arguments
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, out, stats = ctx.saved_tensors
        *grid, backend = ctx.arguments

        def kernel(grad_out: torch.Tensor, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (call(_backward, grad_out, qkv, out, stats, *grid, backend),)

        def formula(qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (reference.space_time_attention(qkv, *grid),)

        return *gradient(kernel, formula, grad_outputs, (qkv,)), *(None for _ in ctx.arguments)
