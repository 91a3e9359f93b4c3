"""Gradients of crossmodal attention's projections as PyTorch's products, for kernels of the forward pass alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def values_backward(
    grad_out: torch.Tensor, z: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, v_weight: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of out_h = Wv_h (norm_weight * z_h + norm_bias) + bv_h: of z, norm weight and bias, Wv, bv."""
    v_heads, grad_heads = v_weight.unflatten(0, (z.shape[1], -1)), grad_out.unflatten(1, (z.shape[1], -1))
    y = torch.addcmul(norm_bias, z, norm_weight).to(v_weight.dtype)
    grad_y = torch.einsum("bhd,hdc->bhc", grad_heads, v_heads).float()
    grad_v_weight = torch.einsum("bhd,bhc->hdc", grad_heads, y).flatten(0, 1)
    return grad_y * norm_weight, (grad_y * z).sum((0, 1)), grad_y.sum((0, 1)), grad_v_weight, grad_out.sum(0)


def query_backward(
    grad_u: torch.Tensor,
    query_token: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients of u_h = norm_weight / sqrt(D) * (Wk_hᵀ q_h), q = Wq LayerNorm(query) + bq, of all tensors in order."""
    heads = grad_u.shape[1]
    scale = (q_weight.shape[0] // heads) ** -0.5
    x, shape = query_token.float(), query_token.shape[1:]
    # PyTorch's own LayerNorm: derivatives of these are not asked for here.
    y, mean, rstd = torch.native_layer_norm(x, shape, norm_weight, norm_bias, eps)
    y = y.to(q_weight.dtype)
    q, k_heads = F.linear(y, q_weight, q_bias).unflatten(-1, (heads, -1)), k_weight.unflatten(0, (heads, -1))

    grad_absorbed = (grad_u * (norm_weight * scale)).to(k_weight.dtype)
    grad_k_weight = torch.einsum("bhd,bhc->hdc", q, grad_absorbed).flatten(0, 1)
    grad_q = torch.einsum("bhc,hdc->bhd", grad_absorbed, k_heads).flatten(1)
    grad_y = (grad_q @ q_weight).float()
    absorbed = torch.einsum("bhd,hdc->bhc", q, k_heads)
    grad_query, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
        grad_y, x, shape, mean, rstd, norm_weight, norm_bias, [True, True, True]
    )
    grad_norm_weight = grad_norm_weight + (grad_u * absorbed).sum((0, 1)) * scale
    grad_query = grad_query.to(query_token.dtype)
    return grad_query, grad_norm_weight, grad_norm_bias, grad_q.T @ y, grad_q.sum(0), grad_k_weight
