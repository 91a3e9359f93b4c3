"""Crossmodal attention as the paper draws it: keys and values of every token, one query."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Written out: the third derivatives of PyTorch's own layer norm are wrong (2.13).
from hsta_kernels.ops.add_layer_norm.reference import layer_norm


def cross_modal_attention(
    query_token: torch.Tensor,
    tokens: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    q_weight: torch.Tensor,
    q_bias: torch.Tensor,
    k_weight: torch.Tensor,
    k_bias: torch.Tensor,
    v_weight: torch.Tensor,
    v_bias: torch.Tensor,
    num_heads: int,
    eps: float,
) -> torch.Tensor:
    """Shapes and meaning as in the public function; any floating dtype, differentiable any number of times."""
    sequence = torch.cat([query_token[:, None], tokens], dim=1)
    y = layer_norm(sequence, norm_weight, norm_bias, eps)
    q = F.linear(y[:, 0], q_weight, q_bias).unflatten(-1, (num_heads, -1))
    k = F.linear(y, k_weight, k_bias).unflatten(-1, (num_heads, -1))
    v = F.linear(y, v_weight, v_bias).unflatten(-1, (num_heads, -1))
    scores = torch.einsum("bhd,bjhd->bhj", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhj,bjhd->bhd", scores.softmax(dim=-1), v).flatten(1)


def absorbed_attention(u: torch.Tensor, query_token: torch.Tensor, tokens: torch.Tensor, eps: float) -> torch.Tensor:
    """What the kernels compute of it: each head's mean of the normalized rows, weighted by their products with u."""
    rows = torch.cat([query_token[:, None], tokens], dim=1).to(u.dtype)
    rows = layer_norm(rows, rows.new_ones(()), rows.new_zeros(()), eps)
    return torch.einsum("bhc,bjc->bhj", u, rows).softmax(dim=-1) @ rows
