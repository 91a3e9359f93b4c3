"""The custom ops and the autograd Function of space-time attention."""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.dispatch import call, custom_op, gradient
from hsta_kernels.ops.space_time_attention import cpu, padded, reference, triton
from hsta_kernels.ops.space_time_attention.grid import Grid
from hsta_kernels.ops.space_time_attention.operands import Operands

# Each module has forward(qkv, grid, operands, out) -> (out, stats), stats_shape(qkv, grid), and backward(grad_out, qkv,
# out, stats, grid, operands, grad_bias, grads) -> gradients. `qkv` is a tuple of one packed tensor or of three, and so
# are the gradients, after which comes that of `affine`, if given. Results are new, or, but that one, written into the
# last argument, if given; the bias's gradient is written into `grad_bias`, if given.
OPERATOR = backends.Operator(
    "space_time_attention",
    {"cpu": cpu, "triton": triton},
    lambda tensor: ((tensor(1, 9, 3, 2, 32),), Grid(2, 4, "time", 1, 1.0)),
)


def _grid(*arguments: Any) -> Grid:
    """As the ops take it apart; their lists are tuples in it."""
    grid = Grid(*arguments)
    return grid if grid.valid_frames is None else grid._replace(valid_frames=tuple(grid.valid_frames))


def _operands(*tensors: torch.Tensor | None) -> Operands:
    """As kernels read them."""
    return Operands.of(*(None if tensor is None else rows_contiguous(tensor) for tensor in tensors))


@custom_op("space_time_attention_forward")
def _forward(
    qkv: list[torch.Tensor],
    num_frames: int,
    num_patches: int,
    axis: str,
    num_prefix_tokens: int,
    scale: float,
    prefix: str,
    token_order: str,
    dropout_rate: float,
    rotary_pairs: str | None,
    qk_norm: str | None,
    qk_norm_eps: float,
    valid_frames: list[int] | None,
    biased: bool,
    seed: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    affine: torch.Tensor | None,
    bias: torch.Tensor | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    grid = _grid(
        num_frames, num_patches, axis, num_prefix_tokens, scale, prefix, token_order, dropout_rate, rotary_pairs,
        qk_norm, qk_norm_eps, valid_frames, biased,
    )  # fmt: skip
    implementation, rows = OPERATOR.implementations[backend], tuple(map(rows_contiguous, qkv))
    operands = _operands(seed, cos, sin, affine, bias)
    if grid.valid_frames is None:
        return implementation.forward(rows, grid, operands)
    return padded.forward(implementation, rows, grid, operands)


@_forward.register_fake
def _(qkv, *arguments):
    *numbers, _, _, _, _, _, backend = arguments
    grid, implementation = _grid(*numbers), OPERATOR.implementations[backend]
    if grid.valid_frames is None:
        stats_shape = implementation.stats_shape(qkv, grid)
    else:
        stats_shape = padded.stats_shape(implementation, qkv, grid)
    return qkv[0].new_empty(cpu.out_shape(qkv)), qkv[0].new_empty(stats_shape, dtype=torch.float32)


@custom_op("space_time_attention_backward")
def _backward(
    grad_out: torch.Tensor,
    qkv: list[torch.Tensor],
    out: torch.Tensor,
    stats: torch.Tensor,
    num_frames: int,
    num_patches: int,
    axis: str,
    num_prefix_tokens: int,
    scale: float,
    prefix: str,
    token_order: str,
    dropout_rate: float,
    rotary_pairs: str | None,
    qk_norm: str | None,
    qk_norm_eps: float,
    valid_frames: list[int] | None,
    biased: bool,
    seed: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    affine: torch.Tensor | None,
    bias: torch.Tensor | None,
    backend: str,
    learn_bias: bool,
) -> list[torch.Tensor]:
    """The gradients of `qkv`, then that of `affine`, if given, and with `learn_bias` that of the bias."""
    grid = _grid(
        num_frames, num_patches, axis, num_prefix_tokens, scale, prefix, token_order, dropout_rate, rotary_pairs,
        qk_norm, qk_norm_eps, valid_frames, biased,
    )  # fmt: skip
    implementation, operands = OPERATOR.implementations[backend], _operands(seed, cos, sin, affine, bias)
    tensors = (rows_contiguous(grad_out), tuple(map(rows_contiguous, qkv)), out, stats)
    learned = bias if learn_bias else None
    grad_bias = None if learned is None else torch.zeros_like(learned, memory_format=torch.contiguous_format)
    if grid.valid_frames is None:
        grads = implementation.backward(*tensors, grid, operands, grad_bias)
    else:
        grads = padded.backward(implementation, *tensors, grid, operands, grad_bias)
    return [*grads, *(() if grad_bias is None else (grad_bias,))]


@_backward.register_fake
def _(grad_out, qkv, *arguments):
    *_, affine, bias, _, learn_bias = arguments
    learned = (*qkv, affine, bias if learn_bias else None)
    return [tensor.new_empty(tensor.shape) for tensor in learned if tensor is not None]


class SpaceTimeAttention(torch.autograd.Function):
    """Saves the output and softmax statistics of queries; the backward pass recomputes the probabilities.

    The statistics, float32, are m = max_j s_j and Σ_j 2^(s_j - m) of the scores s_j = scale·log2(e)·q·k_j, for the
    queries whose whole row an implementation's backward does not see at once. Their log-sum-exp would do, but rounded
    to float32 it puts an error of several ulp on every probability of its row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grid: Grid,
        seed: torch.Tensor | None,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        affine: torch.Tensor | None,
        bias: torch.Tensor | None,
        backend: str,
        *qkv: torch.Tensor,
    ) -> torch.Tensor:
        out, stats = call(_forward, qkv, *grid, seed, cos, sin, affine, bias, backend)
        ctx.save_for_backward(seed, cos, sin, affine, bias, out, stats, *qkv)
        ctx.grid, ctx.backend = grid, backend
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seed, cos, sin, affine, bias, out, stats, *qkv = ctx.saved_tensors
        parts, learn_bias = len(qkv), ctx.needs_input_grad[5]
        inputs = (*qkv, *(() if affine is None else (affine,)), *((bias,) if learn_bias else ()))

        def of_inputs(inputs: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
            rest = iter(inputs[parts:])
            return inputs[:parts], None if affine is None else next(rest), next(rest) if learn_bias else bias

        def kernel(grad_out: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            qkv, *more = of_inputs(inputs)
            arguments = (*ctx.grid, seed, cos, sin, *more, ctx.backend, learn_bias)
            return tuple(call(_backward, grad_out, qkv, out, stats, *arguments))

        def formula(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            qkv, *more = of_inputs(inputs)
            return (reference.space_time_attention(qkv, ctx.grid, Operands.of(seed, cos, sin, *more)),)

        grads = iter(gradient(kernel, formula, grad_outputs, inputs))
        of_qkv = [next(grads) for _ in range(parts)]
        of_affine, of_bias = None if affine is None else next(grads), next(grads) if learn_bias else None
        return None, None, None, None, of_affine, of_bias, None, *of_qkv
