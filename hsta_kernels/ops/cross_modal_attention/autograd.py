"""Crossmodal attention, and absorbed attention, its kernel: custom ops and autograd Functions.

With x̂ = (x - mean) / sqrt(var + eps), a token's normalization without affine parameters, absorbed attention is

    z_h = Σ_j softmax_j(u_h · x̂_j) x̂_j      over the rows j of [query_token, tokens],

everything in crossmodal attention that touches all tokens: u has absorbed the key projection. Dropout makes other
weights of softmax's, and z no mean: s_h, their sum, is then a second result, since biases are multiplied by it. What is
left are products of single rows with weights, before it and after it: kernels too on the CPU and in Triton.
"""

from __future__ import annotations

from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.cross_modal_attention import cpu, cuda, reference, triton
from hsta_kernels.ops.dispatch import call, custom_op, gradient

# Each module has forward(u, query_token, tokens, eps, dropout_rate, seed) -> (z, stats) and backward(grad_z, u,
# query_token, tokens, z, stats, eps, dropout_rate, seed, grad_s) -> (grad_u, grad_query_token, grad_tokens). With
# dropout the third of a head's stats is s. Those of WHOLE, whose projections are kernels too, also have, without
# dropout, cross_modal_attention(query_token, tokens, weights but k_bias, num_heads, eps) -> (out, u, z, stats), and
# cross_modal_attention_backward(grad_out, query_token, tokens, weights but k_bias and v_bias, u, z, stats, eps) ->
# k_bias's gradient, zeros, and those of what the first is given.
OPERATOR = backends.Operator(
    "cross_modal_attention",
    {"cpu": cpu, "cuda": cuda, "triton": triton},
    lambda tensor: (tensor(1, 9, 64), 2),
)
WHOLE = ("cpu", "triton")


@custom_op("absorbed_attention_forward")
def _forward(
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    eps: float,
    dropout_rate: float,
    seed: torch.Tensor | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (u.contiguous(), rows_contiguous(query_token), tokens)
    return OPERATOR.implementations[backend].forward(*tensors, eps, dropout_rate, seed)


@_forward.register_fake
def _(u, query_token, tokens, eps, dropout_rate, seed, backend):
    return u.new_empty(u.shape), u.new_empty((*u.shape[:2], 2 if seed is None else 3))


@custom_op("absorbed_attention_backward")
def _backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    dropout_rate: float,
    seed: torch.Tensor | None,
    grad_s: torch.Tensor | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors = (grad_z.contiguous(), u.contiguous(), rows_contiguous(query_token), tokens, z, stats)
    grad_s = None if grad_s is None else grad_s.contiguous()
    return OPERATOR.implementations[backend].backward(*tensors, eps, dropout_rate, seed, grad_s)


@_backward.register_fake
def _(grad_z, u, query_token, tokens, z, stats, eps, dropout_rate, seed, grad_s, backend):
    return u.new_empty(u.shape), query_token.new_empty(query_token.shape), tokens.new_empty(tokens.shape)


@custom_op("cross_modal_attention")
def cross_modal_attention(
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    v_bias: torch.Tensor,
    num_heads: int,
    eps: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator's result, and u, z and the statistics of absorbed attention: all of it is kernels."""
    rows = rows_contiguous(query_token), rows_contiguous(tokens)
    weights = (norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, v_bias)
    contiguous = (weight.contiguous() for weight in weights)
    return OPERATOR.implementations[backend].cross_modal_attention(*rows, *contiguous, num_heads, eps)


@cross_modal_attention.register_fake
def _(
    query_token, tokens, norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, v_bias, num_heads, eps, backend
):
    batch, width = query_token.shape
    u, z = (query_token.new_empty((batch, num_heads, width), dtype=torch.float32) for _ in range(2))
    return query_token.new_empty((batch, width)), u, z, u.new_empty((batch, num_heads, 2))


@custom_op("cross_modal_attention_backward")
def cross_modal_attention_backward(
    grad_out: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    v_weight: torch.Tensor,
    u: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    backend: str,
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor,
    torch.Tensor, torch.Tensor,
]:  # fmt: skip
    """The gradients of k_bias, zeros, and of the tensors that `cross_modal_attention` is given, in their order."""
    rows = rows_contiguous(query_token), rows_contiguous(tokens)
    weights = (norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight)
    contiguous = (weight.contiguous() for weight in weights)
    return OPERATOR.implementations[backend].cross_modal_attention_backward(
        grad_out.contiguous(), *rows, *contiguous, u, z, stats, eps
    )


@cross_modal_attention_backward.register_fake
def _(
    grad_out, query_token, tokens, norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, u, z, stats, eps,
    backend,
):  # fmt: skip
    like = (q_bias, query_token, tokens, norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, q_bias)
    return tuple(tensor.new_empty(tensor.shape) for tensor in like)


class CrossModalAttention(torch.autograd.Function):
    """The whole operator on a backend whose projections are kernels, without dropout. Saves what `AbsorbedAttention`
    saves; the query's projection is computed anew in the backward pass.

    The key bias is an argument only to receive its gradient, which is zero.
    """

    @staticmethod
    def forward(ctx: Any, k_bias: torch.Tensor, *arguments: Any) -> torch.Tensor:
        out, u, z, stats = call(cross_modal_attention, *arguments)
        *tensors, ctx.num_heads, ctx.eps, ctx.backend = arguments
        ctx.save_for_backward(k_bias, *tensors, u, z, stats)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, u, z, stats = ctx.saved_tensors
        num_heads, eps, backend = ctx.num_heads, ctx.eps, ctx.backend

        def kernel(grad_out: torch.Tensor, _: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return call(cross_modal_attention_backward, grad_out, *inputs[:-1], u, z, stats, eps, backend)

        def formula(k_bias: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            before, after, zeros = inputs[:7], inputs[7:], torch.zeros_like(k_bias)
            return (reference.cross_modal_attention(*before, zeros, *after, num_heads, eps),)  # type: ignore[arg-type, call-arg]

        return *gradient(kernel, formula, grad_outputs, tuple(inputs)), None, None, None


class AbsorbedAttention(torch.autograd.Function):
    """Saves z and each head's softmax statistics (as in space-time attention); the tokens' means and variances and the
    probabilities are recomputed in the backward pass, and so is dropout's mask.

    Returns z, and with dropout z and s.

    The key bias is an argument only to receive its gradient: it shifts all scores of a head alike, so that is zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        query_token: torch.Tensor,
        tokens: torch.Tensor,
        k_bias: torch.Tensor,
        eps: float,
        dropout_rate: float,
        seed: torch.Tensor | None,
        backend: str,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        z, stats = call(_forward, u, query_token, tokens, eps, dropout_rate, seed, backend)
        ctx.save_for_backward(u, query_token, tokens, seed, z, stats)
        ctx.k_bias_like = (k_bias.shape, k_bias.dtype)
        ctx.arguments = (eps, dropout_rate, backend)
        return z if seed is None else (z, stats[..., 2].clone())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, seed, z, stats = ctx.saved_tensors
        eps, dropout_rate, backend = ctx.arguments

        def kernel(grad_z: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            grad_s, *inputs = (None, *tensors) if seed is None else tensors
            return call(_backward, grad_z, *inputs, z, stats, eps, dropout_rate, seed, grad_s, backend)

        def formula(u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return reference.absorbed_attention(u, query_token, tokens, eps, dropout_rate, seed)

        grads = gradient(kernel, formula, grad_outputs, tuple(inputs))
        shape, dtype = ctx.k_bias_like
        return *grads, grad_outputs[0].new_zeros(shape, dtype=dtype), None, None, None, None
