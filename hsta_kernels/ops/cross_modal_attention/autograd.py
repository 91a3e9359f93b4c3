"""The streaming pass of crossmodal attention: custom ops and autograd Function.

With x̂ = (x - mean) / sqrt(var + eps), a token's normalization without affine parameters, the pass computes

    z_h = Σ_j softmax_j(u_h · x̂_j) x̂_j      over the rows j of [query_token, tokens],

everything in it that touches all tokens. What is left of crossmodal attention are products of single rows with weights.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from hsta_kernels import backends
from hsta_kernels.ops import triton
from hsta_kernels.ops.checks import rows_contiguous
from hsta_kernels.ops.cross_modal_attention import cuda, native, reference
from hsta_kernels.ops.dispatch import call, gradient

# Each module has forward(u, query_token, tokens, eps) -> (z, stats) and
# backward(grad_z, u, query_token, tokens, z, stats, eps) -> (grad_u, grad_query_token, grad_tokens).
_IMPLEMENTATIONS: dict[str, ModuleType] = {
    "cpu": native,
    "cuda": cuda,
    "triton": triton.LazyModule("hsta_kernels.ops.cross_modal_attention.triton"),
}


def _refuse_triton(tokens: torch.Tensor, *heads: Any) -> str | None:
    return triton.refuse("tokens", tokens, "pool_columns")


backends.register("cross_modal_attention", "triton", _refuse_triton)


@torch.library.custom_op("hsta_kernels::cross_modal_attention_forward", mutates_args=())
def _forward(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return _IMPLEMENTATIONS[backend].forward(u.contiguous(), rows_contiguous(query_token), tokens, eps)


@_forward.register_fake
def _(u, query_token, tokens, eps, backend):
    return u.new_empty(u.shape), u.new_empty((*u.shape[:2], 2))


@torch.library.custom_op("hsta_kernels::cross_modal_attention_backward", mutates_args=())
def _backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors = (grad_z.contiguous(), u.contiguous(), rows_contiguous(query_token), tokens, z, stats)
    return _IMPLEMENTATIONS[backend].backward(*tensors, eps)


@_backward.register_fake
def _(grad_z, u, query_token, tokens, z, stats, eps, backend):
    return u.new_empty(u.shape), query_token.new_empty(query_token.shape), tokens.new_empty(tokens.shape)


@torch.library.custom_op("hsta_kernels::cross_modal_attention_inference", mutates_args=())
def inference(
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
) -> torch.Tensor:
    """The whole operator on the CPU, without gradients."""
    rows = rows_contiguous(query_token), rows_contiguous(tokens)
    weights = (norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, v_bias)
    return native.inference(*rows, *weights, num_heads, eps)


@inference.register_fake
def _(query_token, tokens, norm_weight, norm_bias, q_weight, q_bias, k_weight, v_weight, v_bias, num_heads, eps):
    return query_token.new_empty(query_token.shape)


class NormalizedPooling(torch.autograd.Function):
    """Saves z and each head's softmax statistics (as in space-time attention); the tokens' means and variances and the
    probabilities are recomputed in the backward pass.

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
        backend: str,
    ) -> torch.Tensor:
        z, stats = call(_forward, u, query_token, tokens, eps, backend)
        ctx.save_for_backward(u, query_token, tokens, z, stats)
        ctx.k_bias_like = (k_bias.shape, k_bias.dtype)
        ctx.arguments = (eps, backend)
        return z

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, z, stats = ctx.saved_tensors
        eps, backend = ctx.arguments

        def kernel(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return call(_backward, *tensors, z, stats, eps, backend)

        def formula(u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (reference.normalized_pooling(u, query_token, tokens, eps),)

        grads = gradient(kernel, formula, grad_outputs, tuple(inputs))
        shape, dtype = ctx.k_bias_like
        return *grads, grad_outputs[0].new_zeros(shape, dtype=dtype), None, None
