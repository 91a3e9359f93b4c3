"""The streaming pass of crossmodal attention in PyTorch operations, forward and backward."""

from __future__ import annotations

import torch


def forward(
    u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """u (B, H, C) float32, query_token (B, C), tokens (B, N, C) -> z (B, H, C), lse (B, H), float32."""
    query, query_scores, query_rstd = _normalize(query_token[:, None].float(), u, eps)
    rows, row_scores, row_rstd = _normalize(tokens.float(), u, eps)
    scores = torch.cat([query_scores, row_scores], dim=-1)
    lse = scores.logsumexp(dim=-1)
    query_weights, row_weights = (scores - lse[..., None]).exp().split([1, tokens.shape[1]], dim=-1)
    return _pool(query, query_rstd, query_weights) + _pool(rows, row_rstd, row_weights), lse


def backward(
    grad_z: torch.Tensor,
    u: torch.Tensor,
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    z: torch.Tensor,
    lse: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of u, query_token and tokens, each with its tensor's shape and dtype."""
    delta = (grad_z * z).sum(-1, keepdim=True)
    grad_u_query, grad_query = _backward_rows(grad_z, u, query_token[:, None].float(), delta, lse, eps)
    grad_u_rows, grad_rows = _backward_rows(grad_z, u, tokens.float(), delta, lse, eps)
    return grad_u_query + grad_u_rows, grad_query[:, 0].to(query_token.dtype), grad_rows.to(tokens.dtype)


def _normalize(x: torch.Tensor, u: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centred rows (B, N, C), scores u · x̂ (B, H, N), and 1 / standard deviation (B, 1, N)."""
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    rstd = (variance + eps).rsqrt().transpose(1, 2)
    centred = x - mean
    return centred, (u @ centred.transpose(1, 2)) * rstd, rstd


def _pool(centred: torch.Tensor, rstd: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (weights * rstd) @ centred


def _backward_rows(
    grad_z: torch.Tensor, u: torch.Tensor, x: torch.Tensor, delta: torch.Tensor, lse: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    centred, scores, rstd = _normalize(x, u, eps)
    normalized = centred * rstd.transpose(1, 2)
    p = (scores - lse[..., None]).exp()
    grad_scores = p * (grad_z @ normalized.transpose(1, 2) - delta)
    grad_normalized = p.transpose(1, 2) @ grad_z + grad_scores.transpose(1, 2) @ u
    projection = (grad_normalized * normalized).mean(-1, keepdim=True)
    grad_x = (grad_normalized - grad_normalized.mean(-1, keepdim=True) - normalized * projection) * rstd.transpose(1, 2)
    return grad_scores @ normalized, grad_x
